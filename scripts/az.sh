# For the scripts beside this file: options they share, and the one way to Azure's command line.
# shellcheck shell=bash

DRY_RUN=false
exec 3>&1 # what a dry run prints, also where a script keeps a call's output for itself

# Before the first call.
need_az() {
  $DRY_RUN || command -v az >/dev/null ||
    fail "az is missing: https://learn.microsoft.com/cli/azure/install-azure-cli, then az extension add --name ml"
}

# az with these arguments. A dry run prints the command line instead, and nothing comes back.
call() {
  if $DRY_RUN; then
    { printf 'az' && printf ' %q' "$@" && printf '\n'; } >&3
  else
    az "$@"
  fi
}

# exists KIND NAME [OPTION ...]: whether there is one; in a dry run nothing is there yet. `list` is asked because `show`
# fails alike for what is missing and for a login that has expired, and an error is not to be read as a no.
exists() {
  local name=$2 kind found
  read -ra kind <<<"$1"
  shift 2
  found=$(call "${kind[@]}" list "$@" --query "[?name=='$name'].name" --output tsv) || exit 1
  [[ -n $found ]]
}

# delete KIND NAME [OPTION ...]: if there is one.
delete() {
  local name=$2 kind
  if exists "$@" || $DRY_RUN; then
    read -ra kind <<<"$1"
    shift 2
    [[ ${kind[0]} != ml ]] || set -- "$@" --yes # the others do not ask
    call "${kind[@]}" delete --name "$name" "$@"
    say "deleted $name"
  else
    say "there is no $name to delete"
  fi
}

say() {
  $DRY_RUN || printf '%s\n' "$*" >&2
}

# An option's value: the word after it, which is no option.
needs_value() {
  [[ $# -gt 1 && -n $2 && $2 != --* ]] || fail "$1 takes a value"
}

fail() {
  printf '%s\n' "$*" >&2
  exit 1
}

# The value of a key at the left margin of a YAML file, without quotation marks and comment.
value_of() {
  sed -n "s/^$2: *//p" "$1" | sed -E "s/ +#.*//; s/^(['\"])(.*)\1\$/\2/"
}

# The comment at the top of the script is its help.
help() {
  sed -n '2,/^$/s/^# \{0,1\}//p' "scripts/${0##*/}"
}

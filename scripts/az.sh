# Functions that the scripts in this folder share: messages, options, and every call of Azure's command line.
# shellcheck shell=bash

DRY_RUN=false
exec 3>&1 # a dry run prints here, also inside $(...), where a script captures the output of a call

# Fails if az is not installed. Call it before the first call of az.
need_az() {
  $DRY_RUN || command -v az >/dev/null ||
    fail "az is missing: https://learn.microsoft.com/cli/azure/install-azure-cli, then az extension add --name ml"
}

# Runs az with these arguments. A dry run prints the command line instead, and outputs nothing.
call() {
  if $DRY_RUN; then
    { printf 'az' && printf ' %q' "$@" && printf '\n'; } >&3
  else
    az "$@"
  fi
}

# exists KIND NAME [OPTION ...]: succeeds if the resource exists. In a dry run no resource exists. The function calls
# `list`, because `show` fails in the same way for a missing resource and for an expired login, and an error must not
# count as "does not exist".
exists() {
  local name=$2 kind listed
  read -ra kind <<<"$1"
  shift 2
  listed=$(call "${kind[@]}" list "$@" --query "[?name=='$name'].name" --output tsv) || exit 1
  [[ -n $listed ]]
}

# delete KIND NAME [OPTION ...]: deletes the resource if it exists.
delete() {
  local name=$2 kind
  if exists "$@" || $DRY_RUN; then
    read -ra kind <<<"$1"
    shift 2
    [[ ${kind[0]} != ml ]] || set -- "$@" --yes # the other commands do not ask for confirmation
    call "${kind[@]}" delete --name "$name" "$@"
    say "deleted $name"
  else
    say "there is no $name to delete"
  fi
}

# Prints a message on standard error, except in a dry run.
say() {
  $DRY_RUN || printf '%s\n' "$*" >&2
}

# Fails unless an option is followed by its value: a word that is not an option.
needs_value() {
  [[ $# -gt 1 && -n $2 && $2 != --* ]] || fail "$1 needs a value"
}

# Prints a message on standard error and ends the script.
fail() {
  printf '%s\n' "$*" >&2
  exit 1
}

# value_of FILE KEY: prints the value of a top-level key of a YAML file, without quotation marks and comment.
value_of() {
  sed -n "s/^$2: *//p" "$1" | sed -E "s/ +#.*//; s/^(['\"])(.*)\1\$/\2/"
}

# Prints the comment at the top of the script, which is its help.
help() {
  sed -n '2,/^$/s/^# \{0,1\}//p' "scripts/${0##*/}"
}

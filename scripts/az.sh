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

# Whether `az ... show` finds it. In a dry run nothing is there yet.
exists() {
  call "$@" --output none 2>/dev/null && ! $DRY_RUN
}

say() {
  $DRY_RUN || printf '%s\n' "$*" >&2
}

fail() {
  printf '%s\n' "$*" >&2
  exit 1
}

# The value of a key at the left margin of a YAML file.
value_of() {
  sed -n "s/^$2: *//p" "$1"
}

# The comment at the top of the script is its help.
help() {
  sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
}

# The inside of a live bash context. Descriptors given by the agent:
#   13 control: a line comes in, `run`, ahead of one `lend`, or before the first one `warm`, `renew` and `settle`, each with
#      its number; a line `end NUMBER STATUS` goes out
#   14 what the order is about, a file the agent rewrites before each: the code to run; for `lend` variables of the
#      environment that are the next code's only, for `settle` the directory and variables that stay, all ended by NULs
#   15 one line for each reseeding asked for by signal
# The code is sourced at the top level: its variables, functions and options are the shell's. An `exit`, and a failure
# under `set -e`, end the shell, as anywhere.
exec 12<&-
BASH_ARGV0=bash
__offshoot_return() { return 2; }
# From the interrupt on each next command of the code returns instead, until the code is left.
__offshoot_interrupt() {
  shopt -s extdebug
  trap '[[ ${BASH_SOURCE[0]} == /proc/self/fd/12 ]] || __offshoot_return' DEBUG
}
# Names that no variable can have are left out.
__offshoot_lend() {
  builtin local pair name
  __offshoot_gone=() __offshoot_old=() __offshoot_hidden=()
  for pair; do
    name=${pair%%=*}
    [[ $name =~ ^[A-Za-z_][A-Za-z_0-9]*$ ]] || builtin continue
    if [[ ! -v $name ]]; then __offshoot_gone+=("$name")
    elif [[ $(builtin declare -p "$name") =~ ^declare\ -[A-Za-z]*x ]]; then __offshoot_old+=("$name=${!name}")
    else __offshoot_hidden+=("$name=${!name}"); fi
    builtin export -- "$pair"
  done
}
__offshoot_give_back() {
  builtin local pair
  for pair in "${__offshoot_gone[@]}"; do builtin unset -v "$pair"; done
  for pair in "${__offshoot_old[@]}"; do builtin export -- "$pair"; done
  for pair in "${__offshoot_hidden[@]}"; do builtin export -n -- "$pair"; done
  __offshoot_lent=
}
__offshoot_lent=
trap 'RANDOM=$SRANDOM; builtin printf "ok\n" >&15' RTMAX-3
trap : INT
while IFS= builtin read -r -u 13 __offshoot_line; do
  __offshoot_number=${__offshoot_line#* }
  case ${__offshoot_line%% *} in
    run) ;;
    warm) builtin source /proc/self/fd/14; builtin printf 'end %d 0\n' "$__offshoot_number" >&13; continue ;;
    renew) RANDOM=$SRANDOM; builtin printf 'end %d 0\n' "$__offshoot_number" >&13; continue ;;
    lend)
      builtin mapfile -d '' -t __offshoot_words </proc/self/fd/14
      __offshoot_lend "${__offshoot_words[@]}"
      __offshoot_lent=1
      builtin printf 'end %d 0\n' "$__offshoot_number" >&13; continue ;;
    settle)
      builtin mapfile -d '' -t __offshoot_words </proc/self/fd/14
      builtin cd -- "${__offshoot_words[0]}" 2>/dev/null
      __offshoot_status=$?
      __offshoot_lend "${__offshoot_words[@]:1}"
      builtin printf 'end %d %d\n' "$__offshoot_number" "$__offshoot_status" >&13; continue ;;
    *) continue ;;
  esac
  trap __offshoot_interrupt INT
  builtin source /proc/self/fd/14 13>&- 
  __offshoot_status=$?
  trap - DEBUG
  trap : INT
  shopt -u extdebug
  [[ -z $__offshoot_lent ]] || __offshoot_give_back
  builtin printf 'end %d %d\n' "$__offshoot_number" "$__offshoot_status" >&13
done

# The inside of a live bash context. Descriptors given by the agent:
#   13 control: a line comes in, `run` or before the first one `warm` and `renew`; a line `end STATUS` goes out
#   14 the code to run, a file the agent rewrites before each `run`
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
trap 'RANDOM=$SRANDOM; builtin printf "ok\n" >&15' RTMAX-3
trap : INT
while IFS= builtin read -r -u 13 __offshoot_line; do
  case $__offshoot_line in
    run) ;;
    warm) builtin source /proc/self/fd/14; builtin printf 'end 0\n' >&13; continue ;;
    renew) RANDOM=$SRANDOM; builtin printf 'end 0\n' >&13; continue ;;
    *) continue ;;
  esac
  trap __offshoot_interrupt INT
  builtin source /proc/self/fd/14 13>&- 
  __offshoot_status=$?
  trap - DEBUG
  trap : INT
  shopt -u extdebug
  builtin printf 'end %d\n' "$__offshoot_status" >&13
done

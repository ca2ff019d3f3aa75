# Holds the machine of the control plane, and with it all others, and cleans up when they have ended. Standard input is
# the harness's: at its end the machine ends.
# $1 tag, $2 directory, $3 programs, $4 script of the machine, $5 script that cleans up
unshare --mount --pid --net --uts --ipc --fork --kill-child sh -euc "$4" machine "$1" "$2" "$3" control
sh -c "$5" clean "$1" "$2"

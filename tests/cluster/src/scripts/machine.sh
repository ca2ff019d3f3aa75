# The first process of a machine, in namespaces of its own.
# $1 tag, $2 directory of the cluster, $3 programs, $4 name of the machine
echo "$4" >/proc/sys/kernel/hostname
mount -t proc proc /proc
if [ "$4" != control ]; then
    # What a node finds in its usual places is its own; what it needs of the machine must be seen first.
    mount -t tmpfs -o mode=755 tmpfs /run
    mkdir /run/tulle /run/tulle/bin /run/tulle/node
    mount --bind "$3" /run/tulle/bin
    mount --bind "$2/$4" /run/tulle/node
    mount --bind /run/tulle/node/lib /var/lib
    mount --bind /run/tulle/node/log /var/log
    # As on any node: containers may see what is mounted later, if they want.
    mount --make-rshared /
    set -- "$1" "$2" /run/tulle/bin "$4"
fi
for setting in ipv4/ip_forward ipv6/conf/all/forwarding; do
    echo 1 >"/proc/sys/net/$setting"
done
echo ready
exec "$3/pause" "$1" "$4"

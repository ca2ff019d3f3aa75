# Removes what a cluster has outside of its namespaces, after its last process.
# $1 tag, $2 directory
for root in /sys/fs/cgroup /sys/fs/cgroup/*; do
    [ ! -d "$root/$1" ] || find "$root/$1" -depth -type d -exec rmdir {} +
done
rm -rf -- "$2"

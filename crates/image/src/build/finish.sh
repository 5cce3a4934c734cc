# Runs as root inside the new root filesystem, under `sh -eu`, after the recipe's setup.

# Agents work as `user`. The wall is the VM, so inside it `user` may do anything.
groupadd --gid 1000 user
useradd --uid 1000 --gid user --create-home --home-dir /home/user --shell /bin/bash user
if [ -d /etc/sudoers.d ]; then
    printf 'user ALL=(ALL:ALL) NOPASSWD: ALL\n' > /etc/sudoers.d/user
    chmod 0440 /etc/sudoers.d/user
fi
install -d -o user -g user -m 0755 /workspace

# The guest agent sets the real name at each boot; there is no network to resolve anything else.
printf 'offshoot\n' > /etc/hostname
printf '127.0.0.1 localhost offshoot\n::1 localhost\n' > /etc/hosts
: > /etc/resolv.conf
mkdir -p /etc/default
printf 'LANG=C.UTF-8\n' > /etc/default/locale

# Every VM is a machine of its own.
: > /etc/machine-id
rm -f /var/lib/dbus/machine-id
rm -f /etc/ssh/ssh_host_*

# Left by the installation; nothing reads it again.
apt-get clean
rm -rf /var/lib/apt/lists/* /var/log/* /var/cache/debconf/*-old /var/lib/dpkg/*-old /var/cache/ldconfig /tmp/* /var/tmp/*
mkdir -p /var/log/apt

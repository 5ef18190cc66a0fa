"""The program of the isolation self-test that runs inside: Perl, because Debian's perl-base is always there.

(A Python of the right version may live outside of /usr, where the sandbox shows nothing.) It gets its script on
standard input and words like ``tcp=127.0.0.1:4711`` as arguments, and writes one line per probe, ``name TAB
0|1 TAB detail``, then ``end``. It judges what can be judged from inside; what the host's listeners heard is
judged outside.
"""

PROBE_PERL = r"""
use strict; use warnings;
use Socket qw(:DEFAULT getaddrinfo inet_pton pack_sockaddr_in6 AF_INET6 IPPROTO_TCP IPPROTO_UDP);
use Errno qw(ENETUNREACH ECONNREFUSED EINPROGRESS EAFNOSUPPORT EADDRNOTAVAIL ENOENT ENOTDIR);
use Fcntl qw(F_GETFL F_SETFL O_NONBLOCK O_WRONLY O_CREAT O_EXCL O_RDWR);
use POSIX ();

my @descriptors;
if (opendir(my $dir, '/proc/self/fd')) {
  for my $name (readdir $dir) {
    next if $name !~ /^\d+$/ || $name <= 2;
    my $target = readlink("/proc/self/fd/$name");
    next if !defined $target || $target =~ m{^/proc/\d+/fd$};
    push @descriptors, "$name -> $target";
  }
  closedir $dir;
} else { push @descriptors, "cannot be listed: $!"; }

my %given;
for my $word (@ARGV) {
  my ($key, $value) = split /=/, $word, 2;
  push @{ $given{$key} }, $value;
}
sub given { my ($key) = @_; return @{ $given{$key} || [] }; }
sub clean { my ($text) = @_; $text =~ s/[^ -~]/?/g; return $text; }
sub answer {
  my ($name, @leaks) = @_;
  my $detail = clean(substr(join('; ', @leaks), 0, 500));
  print "$name\t", (@leaks ? 0 : 1), "\t$detail\n";
}
sub slurp {
  my ($path) = @_;
  open(my $file, '<', $path) or return undef;
  local $/; my $text = <$file>; close $file;
  return $text;
}
# What may not be looked at is there all the same.
sub visible { my ($path) = @_; return lstat($path) || ($! != ENOENT && $! != ENOTDIR); }
sub listing {
  my ($path) = @_;
  opendir(my $dir, $path) or return undef;
  my @names = grep { $_ ne '.' && $_ ne '..' } readdir $dir;
  closedir $dir;
  return @names;
}

# Returns nothing if the kernel has no way there, else what was found. Inside, a loopback address is the
# sandbox's own, where nobody listens. A timeout means that packets left: that is a leak, too.
sub reach_address {
  my ($family, $packed, $label, $loopback, $kind, $payload) = @_;
  socket(my $socket, $family, $kind, 0) or do {
    return $! == EAFNOSUPPORT ? () : ("$label: no socket: $!");
  };
  fcntl($socket, F_SETFL, O_NONBLOCK);
  if (!connect($socket, $packed)) {
    my $error = $!;
    return () if $error == ENETUNREACH;
    return () if $family == AF_INET6 && $error == EADDRNOTAVAIL;
    return () if $loopback && $error == ECONNREFUSED;
    return ("$label: $error") if $error != EINPROGRESS;
    my $wait = ''; vec($wait, fileno($socket), 1) = 1;
    my $ready = select(undef, $wait, undef, 0.3);
    return ("$label: packets leave") if !$ready;
    my $code = unpack('i', getsockopt($socket, SOL_SOCKET, SO_ERROR));
    return () if $code == ENETUNREACH || ($loopback && $code == ECONNREFUSED);
    if ($code) { local $! = $code; return ("$label: $!"); }
  }
  if ($kind == SOCK_DGRAM) {
    send($socket, $payload, 0);
    my $wait = ''; vec($wait, fileno($socket), 1) = 1;
    select($wait, undef, undef, 0.1);
    my $sent = recv($socket, my $reply, 512, 0);
    return () if !defined $sent && $loopback && $! == ECONNREFUSED;
    return () if !defined $sent && $! == ENETUNREACH;
    return ("$label: datagrams leave");
  }
  send($socket, $payload, 0) if length $payload;
  return ("$label: connected");
}
sub reach {
  my ($host, $port, $kind, $payload) = @_;
  my $packed = inet_pton(AF_INET, $host);
  if (defined $packed) {
    my $loopback = $host =~ /^127\./;
    return reach_address(AF_INET, pack_sockaddr_in($port, $packed), "$host port $port", $loopback, $kind, $payload);
  }
  $packed = inet_pton(AF_INET6, $host);
  if (defined $packed) {
    my $loopback = $host eq '::1';
    return reach_address(AF_INET6, pack_sockaddr_in6($port, $packed), "$host port $port", $loopback, $kind, $payload);
  }
  return ("$host: not an address");
}
sub reach_all {
  my ($kind, $payload, @targets) = @_;
  my @leaks;
  for my $target (@targets) {
    my ($host, $port) = $target =~ /^(.*):(\d+)$/;
    push @leaks, defined $port ? reach($host, $port, $kind, $payload) : "$target: cannot be asked";
  }
  return @leaks;
}

my $query = pack('n6', 0x4452, 0x0100, 1, 0, 0, 0) . "\7example\3org\0" . pack('n2', 1, 1);
my @dns = reach_all(SOCK_DGRAM, $query, given('dns'));
my ($error, @found) = getaddrinfo('example.org', 'domain', { socktype => SOCK_STREAM });
push @dns, 'example.org resolves' if !$error;
answer('dns', @dns);
answer('tcp', reach_all(SOCK_STREAM, '', given('tcp')));
answer('smtp', reach_all(SOCK_STREAM, "EHLO drservice\r\n", given('smtp')));
answer('http', reach_all(SOCK_STREAM, "GET / HTTP/1.0\r\n\r\n", given('http')));
answer('metadata', reach_all(SOCK_STREAM, '', given('metadata')));

if (given('production') || given('production_name') || given('production_socket')) {
  my @leaks = reach_all(SOCK_STREAM, '', given('production'));
  for my $name (given('production_name')) {
    my ($failed, @there) = getaddrinfo($name, '', { socktype => SOCK_STREAM });
    push @leaks, "$name resolves" if !$failed && $name ne 'localhost';
  }
  for my $path (given('production_socket')) { push @leaks, "$path is visible" if visible($path); }
  answer('production', @leaks);
}

my @abstract;
for my $name (given('abstract')) {
  socket(my $socket, AF_UNIX, SOCK_STREAM, 0) or push @abstract, "no socket: $!";
  if (connect($socket, pack('S a*', AF_UNIX, "\0$name"))) { push @abstract, "\@$name: connected"; }
  elsif ($! != ECONNREFUSED) { push @abstract, "\@$name: $!"; }
}
answer('abstract-socket', @abstract);

my %tunnel = map { $_ => 1 } qw(tunl0 gre0 gretap0 erspan0 ip_vti0 ip6_vti0 sit0 ip6tnl0 ip6gre0);
my @interfaces;
my $devices = slurp('/proc/net/dev');
if (!defined $devices) { push @interfaces, 'cannot be listed'; }
else {
  my @names = $devices =~ /^\s*([^\s:|]+):/mg;
  push @interfaces, 'there is no lo' if !grep { $_ eq 'lo' } @names;
  # The kernel puts these, switched off, into every new namespace; without a route they lead nowhere.
  push @interfaces, map { "interface $_" } grep { $_ ne 'lo' && !$tunnel{$_} } @names;
}
my $routes = slurp('/proc/net/route');
push @interfaces, 'routes cannot be listed' if !defined $routes;
push @interfaces, map { "route over $_" } ($routes =~ /^(?!Iface)(\S+)/mg) if defined $routes;
my $routes6 = slurp('/proc/net/ipv6_route');
push @interfaces, map { "IPv6 route over $_" } grep { $_ ne 'lo' } ($routes6 =~ /(\S+)\s*$/mg) if defined $routes6;
answer('interfaces', @interfaces);

my %allowed_variable = map { $_ => 1 } (given('variable'), qw(PWD OLDPWD SHLVL _));
my @environment = map { "variable $_" } grep { !$allowed_variable{$_} } sort keys %ENV;
for my $pid (grep { /^\d+$/ } listing('/proc')) {
  my $text = slurp("/proc/$pid/environ");
  next if !defined $text;
  for my $entry (split /\0/, $text) {
    my ($name) = split /=/, $entry, 2;
    push @environment, "variable $name of process $pid" if defined $name && !$allowed_variable{$name};
    for my $canary (given('canary')) { push @environment, "the canary in process $pid" if index($entry, $canary) >= 0; }
  }
}
answer('environment', @environment);

my %allowed_root = map { $_ => 1 } qw(bin sbin lib lib32 lib64 libx32 usr etc proc dev tmp env);
my %allowed_etc = map { $_ => 1 } qw(passwd group nsswitch.conf hosts localtime alternatives ld.so.cache);
my %allowed_env = map { $_ => 1 } qw(data wal sock log conf files);
my @paths = map { "/$_" } grep { !$allowed_root{$_} } listing('/');
push @paths, map { "/etc/$_" } grep { !$allowed_etc{$_} } listing('/etc');
push @paths, map { "/env/$_" } grep { !$allowed_env{$_} } listing('/env');
push @paths, listing('/tmp') ? '/tmp is not empty' : ();
push @paths, listing('/dev/shm') ? '/dev/shm is not empty' : ();
for my $path (given('hidden')) { push @paths, $path if visible($path); }
answer('host-paths', @paths);

my %writable = map { $_ => 1 } (given('writable'), '/dev/pts', '/proc',
  map { "/dev/$_" } qw(null zero full random urandom tty console));
my (@written, @mountpoints);
my $mounts = slurp('/proc/self/mountinfo');
if (!defined $mounts) { push @written, 'mounts cannot be listed'; }
else {
  for my $line (split /\n/, $mounts) {
    my (undef, undef, undef, undef, $point, $options) = split / /, $line;
    push @mountpoints, $point;
    next if $writable{$point} || $point =~ m{^/proc/};
    push @written, "$point is mounted writable" if grep { $_ eq 'rw' } split /,/, $options;
  }
}
for my $place (@mountpoints, qw(/ /usr /usr/bin /usr/lib /usr/local /etc /env /env/conf /dev /var /run /srv /home)) {
  next if $writable{$place} || !-d $place;
  my $path = "$place/.drservice-probe-$$";
  if (sysopen(my $file, $path, O_WRONLY | O_CREAT | O_EXCL, 0600)) {
    close $file; unlink $path;
    push @written, "$place can be written";
  }
}
answer('writable', @written);

my $status = slurp('/proc/self/status');
$status = '' if !defined $status;
my ($uids) = $status =~ /^Uid:\s*(.*)$/m;
my ($gids) = $status =~ /^Gid:\s*(.*)$/m;
my ($groups) = $status =~ /^Groups:[ \t]*(.*)$/m;
my @user;
if (!defined $uids || !defined $gids || !defined $groups) { push @user, 'cannot be read'; }
else {
  push @user, "uid $uids" if grep { $_ == 0 } split ' ', $uids;
  push @user, "gid $gids" if grep { $_ == 0 } split ' ', $gids;
  my %own = map { $_ => 1 } split(' ', $gids);
  # 65534 is what the kernel shows for a group that the user namespace does not know.
  push @user, map { "group $_" } grep { !$own{$_} && $_ != 65534 } split(' ', $groups);
}
answer('user', @user);

my @capabilities;
for my $set (qw(CapInh CapPrm CapEff CapBnd CapAmb)) {
  my ($value) = $status =~ /^$set:\s*([0-9a-f]+)$/m;
  push @capabilities, "$set is " . (defined $value ? $value : 'unknown') if !defined $value || $value !~ /^0+$/;
}
answer('capabilities', @capabilities);
my ($no_new) = $status =~ /^NoNewPrivs:\s*(\d)/m;
my ($filter) = $status =~ /^Seccomp:\s*(\d)/m;
answer('system-calls', defined $filter && $filter eq '2' ? () : 'there is no filter');
answer('no-new-privileges', defined $no_new && $no_new eq '1' ? () : 'a setuid program could gain privileges');

my @namespaces;
for my $word (given('namespace')) {
  my ($kind, $outside) = split /:/, $word, 2;
  my $inside = readlink("/proc/self/ns/$kind");
  push @namespaces, "$kind cannot be read" if !defined $inside;
  push @namespaces, "$kind is the host's" if defined $inside && $inside eq $outside;
}
push @namespaces, 'nothing to compare with' if !given('namespace');
answer('namespaces', @namespaces);

my @processes;
my $self = readlink('/proc/self');
push @processes, '/proc is of another process namespace' if !defined $self || $self ne $$;
my ($nspid) = $status =~ /^NSpid:\s*(.*)$/m;
push @processes, 'NSpid is ' . (defined $nspid ? $nspid : 'unknown') if !defined $nspid || $nspid ne $$;
my $first = slurp('/proc/1/comm');
push @processes, 'process 1 is ' . (defined $first ? $first : 'unknown') if !defined $first || $first ne "bwrap\n";
answer('processes', @processes);
answer('descriptors', @descriptors);
answer('terminal', sysopen(my $terminal, '/dev/tty', O_RDWR) ? 'there is a controlling terminal' : ());
print "end\n";
"""

PROBE_NAMES = (
    "dns",
    "tcp",
    "smtp",
    "http",
    "metadata",
    "abstract-socket",
    "interfaces",
    "environment",
    "host-paths",
    "writable",
    "user",
    "capabilities",
    "no-new-privileges",
    "system-calls",
    "namespaces",
    "processes",
    "descriptors",
    "terminal",
)
"""What must be answered each time; ``production`` comes on top when production servers are named."""

//! A network in user space for tests: one nameless namespace and TUN device per node, and a process that carries every packet.

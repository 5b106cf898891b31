//! Several nodes from outside: engines in one process that talk over loopback.

mod cluster;

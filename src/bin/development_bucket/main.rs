//! A development tool: serves a folder as Pre-Authenticated Requests of OCI Object Storage, with switchable faults.

fn main() {}

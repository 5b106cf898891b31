//! Facts about the machine and the rights of the process that ran, under `environment` in `result.json`. It does not know how they
//! are found out.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

/// Host, processor, memory, pod and rights.
#[derive(Clone, Debug, Serialize)]
pub struct Environment {
    /// Name of the host; in a container that of the pod.
    pub host: String,
    /// Release of the kernel.
    pub kernel: String,
    /// Architecture of the machine, as the kernel calls it.
    pub architecture: String,
    /// Model name of the processor.
    pub cpu: Option<String>,
    /// Processors that the container's quota allows.
    pub cpu_threads: usize,
    /// Widest instruction set of the CPU kernels.
    pub cpu_kernels: &'static str,
    /// Memory of the machine.
    pub memory_bytes: Option<u64>,
    /// Names of the downward API.
    pub pod: BTreeMap<String, String>,
    /// Rights of the process that computed.
    pub privileges: Privileges,
}

/// Rights that a job has, for the log and the result.
#[derive(Clone, Debug, Serialize)]
pub struct Privileges {
    /// Numbers of the user and the group, `UID:GID`.
    pub user: String,
    /// Reason for being this user.
    pub user_reason: String,
    /// Names of effective and permitted capabilities; none.
    pub capabilities: Vec<String>,
    /// Programs that it starts cannot gain rights that it has not.
    pub no_new_privs: bool,
    /// Others of the same user may read its memory, and it leaves core files.
    pub dumpable: bool,
    /// Directories and files that it may write to.
    pub landlock: WriteRules,
}

impl fmt::Display for Privileges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "user {} ({})", self.user, self.user_reason)?;
        match self.capabilities.as_slice() {
            [] => f.write_str(", no capabilities")?,
            held => write!(f, ", capabilities {}", held.join(" "))?,
        }
        let no = |is_set: bool| if is_set { "" } else { "not " };
        write!(f, ", {}no_new_privs, {}dumpable; {}", no(self.no_new_privs), no(self.dumpable), self.landlock)
    }
}

/// Rules in force, or the reason for their absence.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum WriteRules {
    /// Rules that the kernel enforces.
    InForce {
        /// The kernel's version of the interface.
        abi: u32,
        /// Files, and directories with everything below.
        writable: Vec<String>,
    },
    /// No rules are enforced.
    Missing {
        /// Reason for their absence.
        not_in_force: String,
    },
}

impl fmt::Display for WriteRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InForce { abi, writable } => {
                write!(f, "Landlock (ABI {abi}) lets it write {} alone", writable.join(", "))
            }
            Self::Missing { not_in_force } => write!(f, "Landlock is not in force: {not_in_force}"),
        }
    }
}

//! Rights of the job's process, given up before it reads a byte from outside.
//!
//! The supervisor keeps what mounting and unmounting take; the job, which parses files of strangers and listens on a port, has no
//! capability, is not root where it can avoid it, cannot gain rights by starting programs, cannot be traced or dumped, and
//! writes to its own directories alone. [`Plan`] is made in the first process, [`Plan::give_up`] is called in the second one.

mod landlock;
mod places;
mod user;

use std::fmt;
use std::io;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, remove_capability_from_bounding_set,
    set_capabilities, set_no_new_privs,
};

use flashjob_config::JobConfig;

pub use places::Made;
use places::Places;
use user::User;

use crate::report::Privileges;

/// Rights that a job is to have.
pub struct Plan {
    places: Places,
    user: User,
}

impl Plan {
    /// The rights that `job` needs, as far as this system lets others be given up. Changes nothing.
    pub fn of(job: &JobConfig) -> Self {
        let places = Places::of(job);
        let user = User::choose(&places);
        Self { places, user }
    }

    /// Makes the directories that the job could not make once its rights are gone.
    pub fn make_directories(&self) -> Made {
        self.places.make(self.user.switched())
    }

    /// Gives up this process's rights, for good. To be called while it has one thread.
    ///
    /// # Errors
    /// The system refuses to take a right away.
    pub fn give_up(&self) -> io::Result<Privileges> {
        // In this order: the bounding set takes CAP_SETPCAP and the user takes CAP_SETUID, which are given up last.
        drop_bounding_set();
        self.user.become_it()?;
        let _ = clear_ambient_capability_set();
        set_capabilities(None, only(CapabilitySet::empty()))?;
        set_no_new_privs(true)?;
        // After the user has changed, as the kernel sets it anew then.
        set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
        setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
        // After no_new_privs, without which Landlock takes CAP_SYS_ADMIN.
        let landlock = landlock::restrict(&self.places.writable());
        let held = capabilities(None)?;
        let names = (held.effective | held.permitted | held.inheritable).iter_names();
        Ok(Privileges {
            user: self.user.numbers(),
            user_reason: self.user.reason().to_owned(),
            capabilities: names.map(|(name, _)| name.to_owned()).collect(),
            no_new_privs: rustix::thread::no_new_privs()?,
            dumpable: rustix::process::dumpable_behavior()? != DumpableBehavior::NotDumpable,
            landlock,
        })
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "once it has mounted, the job runs as user {} ({}), without capabilities, new privileges, core files or tracing; {}",
            self.user.numbers(),
            self.user.reason(),
            landlock::foreseen(&self.places.writable())
        )
    }
}

/// Keeps, of this process's rights, what signalling the job takes, and unmounting where nothing else has.
pub fn keep_for_supervision() {
    keep(CapabilitySet::SYS_ADMIN | CapabilitySet::KILL);
}

/// Keeps, of this process's rights, those that mounting takes.
pub fn keep_for_mounting() {
    keep(CapabilitySet::SYS_ADMIN);
}

fn keep(kept: CapabilitySet) {
    if let Ok(held) = capabilities(None) {
        // A refusal leaves it as it was: it reads nothing from outside.
        let _ = set_capabilities(None, only(held.permitted & kept));
    }
    let _ = set_no_new_privs(true);
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
}

fn only(set: CapabilitySet) -> CapabilitySets {
    CapabilitySets { effective: set, permitted: set, inheritable: CapabilitySet::empty() }
}

/// Withholds all capabilities from whatever is executed later. It takes CAP_SETPCAP; without it no_new_privs does the same.
fn drop_bounding_set() {
    for capability in CapabilitySet::all().iter() {
        let _ = remove_capability_from_bounding_set(capability);
    }
}

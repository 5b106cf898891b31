//! Landlock: a process that takes the right to write from itself, but for what it names.
//!
//! Reading is not restricted: what a job reads is the operator's choice, and libraries of GPUs lie anywhere.

use std::path::Path;

use landlock::{
    ABI, AccessFs, BitFlags, CompatLevel, Compatible as _, LandlockStatus, PathBeneath, PathFd, RestrictionStatus,
    Ruleset, RulesetAttr as _, RulesetCreatedAttr as _, RulesetError, RulesetStatus, Scope,
};
use rustix::process::geteuid;

use crate::report::WriteRules;

/// Rights over files that are taken away: all of writing. Older kernels than Linux 5.19 forbid every move between directories, so
/// that there nothing is taken.
fn writing() -> BitFlags<AccessFs> {
    AccessFs::from_write(ABI::V3)
}

/// Rules that a job which may write to `writable` would have here. Tried on a thread that ends with it.
pub fn foreseen(writable: &[&Path]) -> WriteRules {
    std::thread::scope(|scope| scope.spawn(|| restrict(writable)).join())
        .unwrap_or_else(|_| WriteRules::Missing { not_in_force: "it could not be tried".to_owned() })
}

/// Restricts this thread, and whatever it starts, to write to `writable`, as far as that is there.
pub fn restrict(writable: &[&Path]) -> WriteRules {
    let missing = |reason: &str| WriteRules::Missing { not_in_force: reason.to_owned() };
    let status = match enforce(writable) {
        Ok(status) => status,
        Err(error) => return missing(&error.to_string()),
    };
    match (status.ruleset, status.landlock) {
        (_, LandlockStatus::NotEnabled) => missing("the kernel has it switched off (boot with `lsm=landlock,…`)"),
        (_, LandlockStatus::NotImplemented) => {
            missing("the kernel does not have it, or a filter of the container denies it")
        }
        (RulesetStatus::NotEnforced, _) => {
            missing("it takes Linux 5.19, before which no file could be moved between directories")
        }
        (_, LandlockStatus::Available { effective_abi, kernel_abi }) => {
            // Devices are many and say nothing.
            let named = writable.iter().filter(|path| path.exists() && !path.starts_with("/dev"));
            WriteRules::InForce {
                abi: kernel_abi.map_or(effective_abi as u32, i32::unsigned_abs),
                writable: named.map(|path| path.display().to_string()).collect(),
            }
        }
    }
}

fn enforce(writable: &[&Path]) -> Result<RestrictionStatus, RulesetError> {
    let ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::SoftRequirement)
        .handle_access(AccessFs::Refer)?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(writing())?;
    // Signals go to what the job has started itself, and to no other process.
    let mut created = ruleset.scope(Scope::Signal)?.create()?;
    let own_settings = (!geteuid().is_root()).then_some(Path::new("/proc"));
    for path in writable.iter().copied().chain(own_settings) {
        let Ok(opened) = PathFd::new(path) else { continue };
        let rights = match path.is_dir() && path != Path::new("/proc") {
            true => writing(),
            // Of other processes an ordinary user reaches nothing there, and the child that runs a model's texts offers itself to
            // the kernel for when memory runs out.
            false => writing() & AccessFs::from_file(ABI::V3),
        };
        created = created.add_rule(PathBeneath::new(opened, rights))?;
    }
    created.restrict_self()
}

//! The machine as the operating system and its drivers describe it: the limits of this process's control group, and the GPUs
//! that it uses or was given.

pub mod cgroup;
pub mod given_gpus;
pub mod gpus;

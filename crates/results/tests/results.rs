//! What is read of a results directory, and what is said of one that is none.

mod reading;
mod refusals;
mod sweeps;
mod timelines;

//! The measured region over time, in memory that is bounded however long it is.
//!
//! [`Timeline`] observes facts and keeps slices of time and steps by intensity. What it has so far is the content of `timeline.json`
//! ([`flashjob_results::RecordedTimeline`]), and the source of the plots of the report and of the live page ([`figures()`]). The crate does not
//! know who shows it, and takes no part in the figures of `result.json`.

mod figures;
mod observer;
mod slices;
mod steps;

pub use figures::figures;
pub use observer::Timeline;

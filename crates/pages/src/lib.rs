//! Results as a page: `report.html`, for a run, runs beside each other, or a sweep.
//!
//! One file without scripts, which loads nothing: plots are inline SVG ([`flashjob_charts`]), and a policy in the page's head
//! forbids everything else. Pages are made of what [`flashjob_results`] reads from a directory, also by the job itself, so that
//! `flashjob report` makes the same page of the same files.

mod latencies;
mod page;
mod run;
mod run_page;
mod sweep_page;
mod units;

pub use page::MARK;
pub use run::Run;
pub use run_page::{run_page, side_by_side};
pub use sweep_page::{SweptRuns, sweep_page};
pub use units::named;

//! Results as a page: `report.html` of a run or a sweep, and runs side by side.
//!
//! One file without scripts, which loads nothing: plots are inline SVG ([`flashjob_charts`]), and a policy in the page's head
//! forbids everything else. Pages are made of what [`flashjob_results`] reads from a directory, also by the job itself, so that
//! `flashjob report` makes the same page of the same files.

mod comparison_page;
mod latencies;
mod page;
mod run;
mod run_page;
mod sweep_page;
mod units;

pub use comparison_page::comparison_page;
pub use page::MARK;
pub use run::Run;
pub use run_page::run_page;
pub use sweep_page::{SweptRuns, sweep_page};
pub use units::named;

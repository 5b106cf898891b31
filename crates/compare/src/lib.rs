//! Results of several runs become one comparison: differences in settings and machine, figures with their ratio to the first run,
//! intervals and significance over repeated regions, and a text in one of four formats.
//!
//! It does not know where results come from, reads no files, and knows no engine.

mod comparability;
mod comparison;
mod difference;
mod error;
mod figures;
mod names;
mod render;
mod run;
mod statistics;
mod texts;
mod threshold;

pub use comparability::Incomparable;
pub use comparison::{Cell, Comparison, FigureRow, RunHeading, Significance};
pub use difference::{Difference, Subject};
pub use error::Error;
pub use figures::Rank;
pub use render::{Format, render};
pub use run::Run;
pub use statistics::welch_p_value;
pub use texts::{Grid, GridCell, difference_grid, figure_grid, one_line, run_lines};
pub use threshold::{Below, Threshold};

/// Runs of one comparison at most: a table of more is beyond reading.
pub const MOST_RUNS: usize = 200;

//! Scripts for those who measure, run to their ends.

mod estimate;
mod random_weights;

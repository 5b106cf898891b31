//! Behaviour of this package through its public functions.

mod charts;

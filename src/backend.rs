//! The engines a job can run, behind one trait.
//!
//! A backend turns requests into events and outputs. It does not know where results go.

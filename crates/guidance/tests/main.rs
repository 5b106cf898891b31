//! Behaviour through the public functions.

mod guidance;

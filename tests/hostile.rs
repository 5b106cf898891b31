//! Inputs that somebody made to do harm, or that broke on their way: the job keeps its memory, its time and its result.

mod dataset;
mod memory;
mod metrics_port;
mod mlflow;
mod model_files;
mod store;
mod stranger;

//! A measurement becomes what people and controllers read: terminal, JSON, termination message.
//!
//! It does not know how anything was measured. A result is on disk before anything tries to send it.

mod batch_answers;
mod batch_summary;
mod choices;
mod directory;
mod environment;
mod figures;
mod outputs;
mod prefix_caching;
mod repeats;
mod replicas;
mod reply;
mod result;
mod summary;
mod table;
mod termination;

pub use batch_answers::{AnswersFound, BatchAnswers, BatchFailure, BatchReport};
pub use batch_summary::{batch_figures, batch_summary};
pub use directory::{ANSWERS, DirectoryError, Moved, PageError, ResultsDirectory};
pub use environment::{Environment, Privileges, WriteRules};
pub use figures::{Basis, Figures, named};
pub use outputs::{Answerer, outputs};
pub use prefix_caching::PrefixCaching;
pub use repeats::RepeatsReport;
pub use replicas::{ReplicaFigures, ReplicaResult};
pub use result::JobResult;
pub use summary::summary;
pub use table::{markdown_table, summary_table};
pub use termination::termination_message;

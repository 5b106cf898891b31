//! Times as results, runs and folders show them.

use std::time::SystemTime;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// RFC 3339 in UTC.
pub fn rfc3339(at: SystemTime) -> String {
    let at = OffsetDateTime::from(at);
    at.replace_nanosecond(0).unwrap_or(at).format(&Rfc3339).unwrap_or_default()
}

/// A folder name made of the time, to the millisecond.
pub fn folder_name(at: SystemTime) -> String {
    // Without colons, which some file systems and tools do not take in names. Milliseconds tell runs apart that start together.
    let milliseconds = at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis());
    format!("{}-{:03}", rfc3339(at).replace([':', '-'], ""), milliseconds % 1000)
}

//! Settings of mounts from their keys.

use flashjob_config::MountConfig;

use crate::keys::Raw;
use crate::parsing;
use crate::resolver::Resolver;

const BYTES_PER_MB: u64 = 1_000_000;

/// Upper bound of descriptor numbers (`fs.nr_open`).
const MOST_DESCRIPTORS: u64 = 1 << 20;

/// Reads all keys of mounts. `None`: an error was noted.
pub(crate) fn resolve(resolver: &mut Resolver, raw: &Raw) -> Option<MountConfig> {
    let mode = resolver.choose(&raw.mount_mode);
    let memory = resolver.read_open(
        &raw.mount_memory_mb,
        |text| Ok(parsing::whole(text, 1, parsing::LARGEST_COUNT)? * BYTES_PER_MB),
        |bytes| (bytes / BYTES_PER_MB).to_string(),
    );
    let cache = resolver.read_open(&raw.cache_dir, parsing::path, |path| path.display().to_string());
    let descriptor = resolver.read_open(
        &raw.mount_descriptor,
        // 0 to 2 are the standard streams.
        |text| Ok(parsing::whole(text, 3, MOST_DESCRIPTORS)? as i32),
        i32::to_string,
    );
    let storage_timeout = resolver.read(&raw.storage_timeout, parsing::duration, parsing::shown_seconds);
    Some(MountConfig {
        mode: mode?,
        memory_bytes: memory?,
        cache_directory: cache?,
        descriptor: descriptor?,
        storage_timeout: storage_timeout?,
    })
}

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    flashjob::bucket::fuzzing::listing(data);
});

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    flashjob::model::fuzzing::gguf_header(data);
});

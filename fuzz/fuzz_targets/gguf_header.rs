#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    flashjob_model::fuzzing::gguf_header(data);
});

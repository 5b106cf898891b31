#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    flashjob_model::fuzzing::safetensors_header(data);
});

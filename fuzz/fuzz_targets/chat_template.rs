#![no_main]

libfuzzer_sys::fuzz_target!(
    init: flashjob_fuzz::leave_panics_of(&["minijinja"]),
    |data: &[u8]| {
        flashjob::model::fuzzing::chat_template(data);
    }
);

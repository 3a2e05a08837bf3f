#![no_main]

libfuzzer_sys::fuzz_target!(init: fuzz::report_panics(), |input: &[u8]| fuzz::weights::run_torch(input));

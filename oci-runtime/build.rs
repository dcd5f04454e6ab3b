//! Names the program's entry.

use std::env;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // What comes before the C library (`linux/src/entry.rs`).
    if env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "x86_64") {
        println!("cargo:rustc-link-arg-bins=-Wl,--entry=orlop_entry");
    }
}

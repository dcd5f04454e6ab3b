//! `orlop`: a Kubernetes node in one program. Flags, logging, signals; the work is the components'.

mod address;
mod cli;
mod commands;
mod control_plane;
mod cri_client;
mod dispatch;
mod image;
mod layout;
mod lock;
mod log;
mod node;
mod pod_network;
mod status;
mod up;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args_os().collect();
    // A container's first process and a CNI plugin need a process without threads: they come before everything.
    if let Some(code) = dispatch::before_threads(&words) {
        return code;
    }
    let cli = cli::Cli::parse_from(words);
    // Fails only if it was done before.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    log::init(cli.log_format);
    match commands::run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("orlop: {error:#}");
            ExitCode::FAILURE
        }
    }
}

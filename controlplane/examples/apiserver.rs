//! The API server alone: `cargo run -p controlplane --example apiserver -- FOLDER [ADDRESS:PORT]`.
//!
//! Prints the path of the kubeconfig, serves until Ctrl-C, and keeps everything in FOLDER.

use std::net::SocketAddr;

use controlplane::apiserver::{Config, Server};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments
        .next()
        .ok_or("usage: apiserver FOLDER [ADDRESS:PORT]")?;
    let mut config = Config::new(folder);
    if let Some(address) = arguments.next() {
        config.listen = vec![address.parse::<SocketAddr>()?];
    }
    let server = Server::start(config).await?;
    println!("serving on {:?}", server.addresses());
    println!("export KUBECONFIG={}", server.kubeconfig_path().display());
    tokio::signal::ctrl_c().await?;
    server.shutdown().await;
    Ok(())
}

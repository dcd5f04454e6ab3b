//! Connecting to a port inside a sandbox.

use linux::namespace::{self, NamespaceKind};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use tokio::net::{TcpSocket, TcpStream};

/// Connects to `port` on the loopback of a network namespace; IPv4 first, then IPv6, as the name `localhost` resolves.
///
/// A socket belongs to the namespace that it is made in: it is made on a thread that enters the namespace and ends, and
/// connected by the caller's runtime.
///
/// # Errors
/// The first `connect`'s if both fail, or that of entering the namespace.
pub async fn dial_in_namespace(network: OwnedFd, port: u16) -> io::Result<TcpStream> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("port-forward".to_owned())
        .spawn(move || {
            let sockets = namespace::join(&network, &[NamespaceKind::Network])
                .map_err(io::Error::other)
                .and_then(|()| Ok((TcpSocket::new_v4()?, TcpSocket::new_v6())));
            // A caller that gave up needs no sockets.
            let _ = sender.send(sockets);
        })?;
    let (v4, v6) = receiver.await.map_err(io::Error::other)??;
    let refused = match v4
        .connect(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port))
        .await
    {
        Ok(stream) => return Ok(stream),
        Err(cause) => cause,
    };
    match v6 {
        Ok(v6) => v6
            .connect(SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), port))
            .await
            .map_err(|_| refused),
        Err(_) => Err(refused),
    }
}

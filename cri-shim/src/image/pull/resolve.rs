//! Host names to addresses, as far as a registry needs: `/etc/hosts` and the name servers of `/etc/resolv.conf`
//! (hosts(5), RFC 1035). The C library's resolver loads other libraries at run time, which a static program can't
//! rely on.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::net::UdpSocket;

/// How long one server may take, and how often all of them are asked.
const PATIENCE: Duration = Duration::from_secs(3);
const ROUNDS: usize = 2;
const A: u16 = 1;
const AAAA: u16 = 28;

/// The addresses of a host, IPv4 first.
///
/// # Errors
/// When no server answers, or none knows the name.
pub async fn lookup(host: &str) -> io::Result<Vec<IpAddr>> {
    if let Ok(address) = host.parse() {
        return Ok(vec![address]);
    }
    let hosts = tokio::fs::read_to_string("/etc/hosts")
        .await
        .unwrap_or_default();
    let mut found = in_hosts(&hosts, host);
    if host == "localhost" && found.is_empty() {
        found = vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    }
    if !found.is_empty() {
        return Ok(found);
    }
    let servers = servers(
        &tokio::fs::read_to_string("/etc/resolv.conf")
            .await
            .unwrap_or_default(),
    );
    let (four, six) = tokio::join!(ask(&servers, host, A), ask(&servers, host, AAAA));
    match (four, six) {
        (Err(error), Err(_)) => Err(error),
        (four, six) => {
            let all: Vec<IpAddr> = four
                .unwrap_or_default()
                .into_iter()
                .chain(six.unwrap_or_default())
                .collect();
            if all.is_empty() {
                return Err(io::Error::new(
                    io::ErrorKind::NotFound,
                    format!("no such host: {host}"),
                ));
            }
            Ok(all)
        }
    }
}

fn in_hosts(text: &str, host: &str) -> Vec<IpAddr> {
    let lines = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default());
    let mut found: Vec<IpAddr> = lines
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let address = words.next()?.parse().ok()?;
            words
                .any(|name| name.eq_ignore_ascii_case(host))
                .then_some(address)
        })
        .collect();
    found.sort_by_key(IpAddr::is_ipv6);
    found
}

fn servers(text: &str) -> Vec<SocketAddr> {
    let named = text.lines().filter_map(|line| {
        line.trim()
            .strip_prefix("nameserver")?
            .trim()
            .parse::<IpAddr>()
            .ok()
    });
    let mut servers: Vec<SocketAddr> = named.map(|address| (address, 53).into()).collect();
    if servers.is_empty() {
        servers.push((Ipv4Addr::LOCALHOST, 53).into());
    }
    servers
}

async fn ask(servers: &[SocketAddr], host: &str, kind: u16) -> io::Result<Vec<IpAddr>> {
    let id = rand::random();
    let question = question(id, host, kind)?;
    let mut last = io::Error::new(
        io::ErrorKind::TimedOut,
        format!("look up {host}: no name server answers"),
    );
    for server in servers.iter().cycle().take(servers.len() * ROUNDS) {
        match tokio::time::timeout(PATIENCE, ask_one(*server, id, &question)).await {
            Ok(Ok(addresses)) => return Ok(addresses),
            Ok(Err(error)) => {
                last = io::Error::new(error.kind(), format!("look up {host} at {server}: {error}"))
            }
            Err(_) => {}
        }
    }
    Err(last)
}

async fn ask_one(server: SocketAddr, id: u16, question: &[u8]) -> io::Result<Vec<IpAddr>> {
    let own: SocketAddr = if server.is_ipv6() {
        (Ipv6Addr::UNSPECIFIED, 0).into()
    } else {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    };
    let socket = UdpSocket::bind(own).await?;
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut buffer = [0; 1500];
    loop {
        let n = socket.recv(&mut buffer).await?;
        let answer = buffer.get(..n).unwrap_or_default();
        // Somebody else's answer, or a late one.
        if answer.get(..2) == Some(&id.to_be_bytes()) {
            return addresses(answer).ok_or_else(|| io::Error::other("a malformed answer"));
        }
    }
}

fn question(id: u16, host: &str, kind: u16) -> io::Result<Vec<u8>> {
    let mut packet = id.to_be_bytes().to_vec();
    // Recursion desired; one question.
    packet.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in host.trim_end_matches('.').split('.') {
        let length = u8::try_from(label.len())
            .ok()
            .filter(|length| (1..=63).contains(length));
        let length = length.ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{host:?} is no host name"),
            )
        })?;
        packet.push(length);
        packet.extend(label.as_bytes());
    }
    packet.push(0);
    packet.extend(kind.to_be_bytes());
    packet.extend([0, 1]);
    Ok(packet)
}

/// The addresses in an answer; aliases have been followed by the server. `None` for what isn't an answer. "No such
/// name" is an answer without addresses.
fn addresses(packet: &[u8]) -> Option<Vec<IpAddr>> {
    let number = |at: usize| Some(u16::from_be_bytes(packet.get(at..at + 2)?.try_into().ok()?));
    let status = packet.get(3)? & 0xf;
    if !matches!(status, 0 | 3) {
        return None;
    }
    let (questions, answers) = (number(4)?, number(6)?);
    let mut at = 12;
    for _ in 0..questions {
        at = after_name(packet, at)? + 4;
    }
    let mut found = Vec::new();
    for _ in 0..answers {
        at = after_name(packet, at)?;
        let (kind, length) = (number(at)?, usize::from(number(at + 8)?));
        let data = packet.get(at + 10..at + 10 + length)?;
        match kind {
            A => found.push(IpAddr::from(<[u8; 4]>::try_from(data).ok()?)),
            AAAA => found.push(IpAddr::from(<[u8; 16]>::try_from(data).ok()?)),
            _ => {}
        }
        at += 10 + length;
    }
    Some(found)
}

fn after_name(packet: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *packet.get(at)? {
            0 => return Some(at + 1),
            // A pointer ends the name.
            length if length & 0xc0 == 0xc0 => return Some(at + 2),
            length => at += usize::from(length) + 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_name_servers_are_read() {
        let hosts = "127.0.0.1 localhost # not example.com\n::1 localhost\n10.0.0.5\tregistry.local Registry\n";
        assert_eq!(
            in_hosts(hosts, "registry"),
            ["10.0.0.5".parse::<IpAddr>().unwrap()]
        );
        assert_eq!(in_hosts(hosts, "localhost").len(), 2);
        assert!(in_hosts(hosts, "example.com").is_empty());
        assert_eq!(
            servers("search x\nnameserver 10.0.0.1\n"),
            ["10.0.0.1:53".parse().unwrap()]
        );
        assert_eq!(servers(""), ["127.0.0.1:53".parse().unwrap()]);
    }

    #[test]
    fn an_answer_with_an_alias_is_read_and_a_broken_one_is_not() {
        let mut packet = question(7, "a.example", A).unwrap();
        packet[2] = 0x81;
        packet[7] = 2;
        let record = |kind: u16, data: &[u8]| {
            let mut record = vec![0xc0, 12];
            record.extend(kind.to_be_bytes());
            record.extend([0, 1, 0, 0, 0, 60]);
            record.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
            record.extend(data);
            record
        };
        packet.extend(record(5, b"\x01b\xc0\x0e"));
        packet.extend(record(A, &[10, 0, 0, 9]));
        assert_eq!(addresses(&packet), Some(vec!["10.0.0.9".parse().unwrap()]));
        for end in 0..packet.len() {
            assert_eq!(addresses(&packet[..end]), None, "{end}");
        }
        assert!(question(1, "a..b", A).is_err());
    }

    #[tokio::test]
    async fn a_name_server_is_asked() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap();
        let serve = tokio::spawn(async move {
            let mut buffer = [0; 512];
            let (n, from) = server.recv_from(&mut buffer).await.unwrap();
            let mut answer = buffer[..n].to_vec();
            answer[7] = 1;
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4, 192, 0, 2, 1]);
            server.send_to(&answer, from).await.unwrap();
        });
        let found = ask(&[address], "example.com", A).await.unwrap();
        assert_eq!(found, ["192.0.2.1".parse::<IpAddr>().unwrap()]);
        serve.await.unwrap();
    }
}

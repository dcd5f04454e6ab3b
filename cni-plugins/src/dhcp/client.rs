//! One client: how it gets an address, keeps it and gives it back (RFC 2131 §4.4).

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use linux::netlink::MacAddress;
use linux::packet::{IPV4, PacketSocket};

use super::lease::Lease;
use super::message::{CLIENT_PORT, Kind, Message, SERVER_PORT, broadcast_packet, option, payload};
use crate::protocol::Error;

/// Who asks. Its functions are called in the interface's namespace.
pub struct Client<'a> {
    /// The interface.
    pub index: u32,
    pub mac: MacAddress,
    /// Servers are asked to answer to all stations of the link.
    pub broadcast: bool,
    /// The same in every message.
    pub options: &'a BTreeMap<u8, Vec<u8>>,
}

/// How long a client waits.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For the answer to one message.
    pub timeout: Duration,
    /// Between two attempts at most.
    pub resend_max: Duration,
    /// Altogether.
    pub resend_timeout: Duration,
}

/// What came of asking for more time.
pub enum Renewal {
    /// Longer.
    Granted(Lease),
    /// The server says that the address isn't the client's.
    Refused,
    /// Nobody answered.
    Unanswered,
}

/// Before the first attempt is made again; then twice as long each time.
const FIRST_RESEND: Duration = Duration::from_secs(1);
const LONGEST_PACKET: usize = 65536;

impl Client<'_> {
    /// Gets an address. A server that doesn't answer is asked again until the patience ends.
    ///
    /// # Errors
    /// Code 11, try again later, if there is no offer by then; code 999 if the interface can't be used.
    pub fn acquire(&self, patience: &Patience) -> Result<Lease, Error> {
        let socket = PacketSocket::open(self.index, IPV4).map_err(failed)?;
        let end = Instant::now() + patience.resend_timeout;
        let mut delay = FIRST_RESEND;
        let mut refused = String::new();
        loop {
            let until = (Instant::now() + delay.min(patience.timeout)).min(end);
            match self.attempt(&socket, until)? {
                Attempt::Granted(lease) => return Ok(lease),
                Attempt::Refused(reason) => {
                    refused = reason;
                    std::thread::sleep(until.saturating_duration_since(Instant::now()));
                }
                Attempt::Unanswered => {}
            }
            if Instant::now() >= end {
                let seconds = patience.resend_timeout.as_secs();
                return Err(Error::try_again(match refused.as_str() {
                    "" => format!("no DHCP server gave an address within {seconds} s"),
                    reason => format!("the DHCP server refused: {reason}"),
                }));
            }
            delay = (delay * 2).min(patience.resend_max);
        }
    }

    /// Discover, offer, request, answer.
    fn attempt(&self, socket: &PacketSocket, until: Instant) -> Result<Attempt, Error> {
        let transaction = random();
        let discover = self.message(Kind::Discover, transaction, Ipv4Addr::UNSPECIFIED);
        self.broadcast(socket, &discover)?;
        let offers = |m: &Message| m.kind() == Some(Kind::Offer);
        let Some(offer) = self.answer(socket, transaction, until, offers)? else {
            return Ok(Attempt::Unanswered);
        };
        let mut request = self.message(Kind::Request, transaction, Ipv4Addr::UNSPECIFIED);
        let address = offer.yours.octets().to_vec();
        request.options.insert(option::REQUESTED_ADDRESS, address);
        if let Some(server) = offer.options.get(&option::SERVER) {
            request.options.insert(option::SERVER, server.clone());
        }
        self.broadcast(socket, &request)?;
        let Some(answer) = self.answer(socket, transaction, until, decides)? else {
            return Ok(Attempt::Unanswered);
        };
        if answer.kind() == Some(Kind::Nak) {
            let reason = answer.text(option::MESSAGE).unwrap_or_default();
            return Ok(Attempt::Refused(format!("{} {reason}", offer.yours)));
        }
        Lease::read(&answer).map(Attempt::Granted)
    }

    /// Asks the server that gave the lease for more time.
    ///
    /// # Errors
    /// If the lease's address isn't on the interface, or the server can't be reached.
    pub fn renew(&self, lease: &Lease, patience: Duration) -> Result<Renewal, Error> {
        let socket = self.unicast(lease).map_err(failed)?;
        let transaction = random();
        let request = self.message(Kind::Request, transaction, lease.address);
        socket.send(&request.encode()).map_err(failed)?;
        let end = Instant::now() + patience;
        let mut buffer = vec![0; LONGEST_PACKET];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Renewal::Unanswered);
            }
            socket.set_read_timeout(Some(left)).map_err(failed)?;
            let length = match socket.recv(&mut buffer) {
                Ok(length) => length,
                Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => continue,
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => continue,
                Err(cause) => return Err(failed(cause)),
            };
            let answer = buffer.get(..length).and_then(Message::decode);
            if let Some(answer) = answer.filter(|m| self.is_ours(m, transaction) && decides(m)) {
                return outcome(lease, &answer);
            }
        }
    }

    /// Asks every server of the link for more time.
    ///
    /// # Errors
    /// If the interface can't be used.
    pub fn rebind(&self, lease: &Lease, patience: Duration) -> Result<Renewal, Error> {
        let socket = PacketSocket::open(self.index, IPV4).map_err(failed)?;
        let transaction = random();
        let request = self.message(Kind::Request, transaction, lease.address);
        self.broadcast(&socket, &request)?;
        let until = Instant::now() + patience;
        match self.answer(&socket, transaction, until, decides)? {
            Some(answer) => outcome(lease, &answer),
            None => Ok(Renewal::Unanswered),
        }
    }

    /// Gives the address back. Nobody answers that.
    ///
    /// # Errors
    /// If it can't be sent.
    pub fn release(&self, lease: &Lease) -> Result<(), Error> {
        let mut release = self.message(Kind::Release, random(), lease.address);
        release.options.remove(&option::PARAMETERS);
        let server = lease.server.octets().to_vec();
        release.options.insert(option::SERVER, server);
        let sent = self
            .unicast(lease)
            .and_then(|socket| socket.send(&release.encode()));
        if sent.is_ok() {
            return Ok(());
        }
        // The address is not, or not any more, the interface's.
        let socket = PacketSocket::open(self.index, IPV4).map_err(failed)?;
        self.broadcast(&socket, &release)
    }

    fn unicast(&self, lease: &Lease) -> io::Result<UdpSocket> {
        let socket = UdpSocket::bind((lease.address, CLIENT_PORT))?;
        socket.connect((lease.server, SERVER_PORT))?;
        Ok(socket)
    }

    fn message(&self, kind: Kind, transaction: u32, client: Ipv4Addr) -> Message {
        let mut options = self.options.clone();
        options.insert(option::MESSAGE_TYPE, vec![kind as u8]);
        Message {
            is_reply: false,
            transaction,
            is_answered_to_all: self.broadcast && client.is_unspecified(),
            client,
            yours: Ipv4Addr::UNSPECIFIED,
            mac: self.mac,
            options,
        }
    }

    fn broadcast(&self, socket: &PacketSocket, message: &Message) -> Result<(), Error> {
        let packet = broadcast_packet(message.client, &message.encode());
        socket.broadcast(&packet).map_err(failed)
    }

    /// The first answer that is `wanted`.
    fn answer(
        &self,
        socket: &PacketSocket,
        transaction: u32,
        until: Instant,
        wanted: impl Fn(&Message) -> bool,
    ) -> Result<Option<Message>, Error> {
        let mut buffer = vec![0; LONGEST_PACKET];
        while let Some(length) = socket.receive(&mut buffer, until).map_err(failed)? {
            let answer = buffer.get(..length).and_then(payload);
            let answer = answer.and_then(Message::decode);
            if let Some(answer) = answer.filter(|m| self.is_ours(m, transaction) && wanted(m)) {
                return Ok(Some(answer));
            }
        }
        Ok(None)
    }

    fn is_ours(&self, message: &Message, transaction: u32) -> bool {
        message.is_reply && message.transaction == transaction && message.mac == self.mac
    }
}

enum Attempt {
    Granted(Lease),
    Refused(String),
    Unanswered,
}

fn decides(message: &Message) -> bool {
    matches!(message.kind(), Some(Kind::Ack | Kind::Nak))
}

/// The answer to a request for more time; an address other than the lease's would not be the interface's.
fn outcome(lease: &Lease, answer: &Message) -> Result<Renewal, Error> {
    if answer.kind() == Some(Kind::Nak) {
        return Ok(Renewal::Refused);
    }
    let renewed = Lease::read(answer)?;
    Ok(if renewed.address == lease.address {
        Renewal::Granted(renewed)
    } else {
        Renewal::Refused
    })
}

fn random() -> u32 {
    RandomState::new().build_hasher().finish() as u32
}

fn failed(cause: impl std::fmt::Display) -> Error {
    Error::failed(format!("dhcp: {cause}"))
}

//! A rule's words in the order and form of `iptables-save`, so that what the kernel holds can be compared as text.

use crate::service::Protocol;
use ipnet::IpNet;
use std::net::IpAddr;

/// What packets a rule is for; its chain isn't in it.
#[derive(Debug, Clone, Default)]
pub struct Words {
    source: String,
    destination: String,
    interface: String,
    protocol: String,
    matches: String,
}

/// A protocol's name.
pub fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}

fn not(negated: bool) -> &'static str {
    if negated { "! " } else { "" }
}

impl Words {
    /// All packets.
    pub fn new() -> Words {
        Words::default()
    }

    /// Those with a comment, which is for readers.
    pub fn about(comment: &str) -> Words {
        Words::new().comment(comment)
    }

    /// From a network.
    pub fn from(mut self, network: IpNet) -> Words {
        self.source = format!("-s {network} ");
        self
    }

    /// From anywhere else.
    pub fn not_from(mut self, network: IpNet) -> Words {
        self.source = format!("! -s {network} ");
        self
    }

    /// To a network.
    pub fn to(mut self, network: IpNet) -> Words {
        self.destination = format!("-d {network} ");
        self
    }

    /// To anywhere else.
    pub fn not_to(mut self, network: IpNet) -> Words {
        self.destination = format!("! -d {network} ");
        self
    }

    /// That came in by an interface, or by none such; `+` at its end stands for the rest of the name.
    pub fn interface(mut self, name: &str, negated: bool) -> Words {
        self.interface = format!("{}-i {name} ", not(negated));
        self
    }

    /// Of a protocol.
    pub fn protocol(mut self, protocol: Protocol) -> Words {
        let name = protocol_name(protocol);
        self.protocol = format!("-p {name} ");
        self.matches(&format!("-m {name}"))
    }

    /// To a port.
    pub fn port(self, protocol: Protocol, port: u16) -> Words {
        self.protocol(protocol).matches(&format!("--dport {port}"))
    }

    /// To an address and port.
    pub fn frontend(self, address: IpAddr, protocol: Protocol, port: u16) -> Words {
        self.to(address.into()).port(protocol, port)
    }

    /// With what only `-m` matches have words for.
    pub fn matches(mut self, words: &str) -> Words {
        self.matches.push_str(words);
        self.matches.push(' ');
        self
    }

    /// As iptables-save has it: in quotes, unless it is one plain word. What would end the quotes or the line can't come
    /// from a valid object, and is replaced.
    fn comment(self, text: &str) -> Words {
        const LONGEST: usize = 255;
        let plain = |c: char| {
            if matches!(c, '"' | '\\') || !(' '..='~').contains(&c) {
                '_'
            } else {
                c
            }
        };
        let text: String = text.chars().map(plain).take(LONGEST).collect();
        let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
        if text.chars().all(is_word) {
            self.matches(&format!("-m comment --comment {text}"))
        } else {
            self.matches(&format!("-m comment --comment \"{text}\""))
        }
    }

    /// What becomes of them; empty for nothing.
    pub fn then(&self, target: &str) -> String {
        let Words {
            source,
            destination,
            interface,
            protocol,
            matches,
        } = self;
        let words = format!("{source}{destination}{interface}{protocol}{matches}{target}");
        words.trim_end().to_owned()
    }

    /// They go to a chain.
    pub fn jump(&self, chain: &str) -> String {
        self.then(&format!("-j {chain}"))
    }
}

/// One of `count` at random, as the kernel keeps it: in parts of 2^31.
pub fn one_of(count: usize) -> String {
    const WHOLE: f64 = (1u32 << 31) as f64;
    let part = (WHOLE / count as f64).round() / WHOLE;
    format!("-m statistic --mode random --probability {part:.11}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stand_where_iptables_save_puts_them() {
        let words = Words::about("ns/web:http cluster IP")
            .frontend(IpAddr::from([10, 96, 0, 1]), Protocol::Tcp, 80)
            .not_from("10.244.0.0/16".parse().expect("network"));
        assert_eq!(
            words.jump("KUBE-MARK-MASQ"),
            "! -s 10.244.0.0/16 -d 10.96.0.1/32 -p tcp -m comment --comment \"ns/web:http cluster IP\" -m tcp --dport 80 \
             -j KUBE-MARK-MASQ"
        );
        assert_eq!(Words::about("f").then(""), "-m comment --comment f");
    }

    #[test]
    fn a_comment_ends_neither_its_quotes_nor_its_line() {
        let words = Words::about("a\" -j ACCEPT\n-A INPUT").then("");
        assert_eq!(words, "-m comment --comment \"a_ -j ACCEPT_-A INPUT\"");
    }

    #[test]
    fn probabilities_are_the_kernels() {
        let shares = [2, 3, 7].map(|count| one_of(count).rsplit(' ').next().map(str::to_owned));
        let wanted = ["0.50000000000", "0.33333333349", "0.14285714272"];
        assert_eq!(shares, wanted.map(|share| Some(share.to_owned())));
    }
}

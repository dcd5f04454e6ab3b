//! Shaping: how fast an interface may send (`man 8 tc-tbf`), and redirection of what it receives, so that receiving can
//! be shaped as sending too.

use super::Result;
use super::conversation::Netlink;
use super::message::{Message, attributes, text, u32_at, u64_at};

/// A token bucket: the rate that is kept, and how much may go at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenBucket {
    /// Bytes a second.
    pub rate: u64,
    /// Bytes.
    pub burst: u32,
    /// How many bytes may wait; more are dropped.
    pub limit: u32,
}

/// `linux/pkt_sched.h`, `linux/pkt_cls.h`, `linux/tc_act/tc_mirred.h`
const TC_H_ROOT: u32 = 0xffff_ffff;
const TC_H_INGRESS: u32 = 0xffff_fff1;
const INGRESS_HANDLE: u32 = 0xffff_0000;
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
const TC_LINKLAYER_ETHERNET: u8 = 1;
const TCA_U32_SEL: u16 = 5;
const TCA_U32_ACT: u16 = 7;
const TC_U32_TERMINAL: u8 = 1;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_MIRRED_PARMS: u16 = 2;
const TCA_EGRESS_REDIR: u32 = 1;
const TC_ACT_STOLEN: u32 = 4;
const ETH_P_ALL: u16 = 3;

impl Netlink {
    /// Lets interface `index` send no faster than `bucket`, in the place of its present discipline.
    ///
    /// # Errors
    /// ENOENT in a kernel without tbf; EINVAL for a burst that is less than a packet.
    pub fn set_token_bucket(&mut self, index: u32, bucket: &TokenBucket) -> Result<()> {
        let flags = libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
        let mut message = Message::new(
            libc::RTM_NEWQDISC,
            flags,
            &header(index, 1 << 16, TC_H_ROOT, 0),
        );
        message.string(libc::TCA_KIND, "tbf");
        message.nested(libc::TCA_OPTIONS, |options| {
            options.bytes(TCA_TBF_PARMS, &parameters(bucket));
            options.bytes(TCA_TBF_RATE64, &bucket.rate.to_ne_bytes());
            options.u32(TCA_TBF_BURST, bucket.burst);
        });
        let object = || format!("{} bytes/s on interface {index}", bucket.rate);
        self.execute(message)
            .map_err(|refusal| refusal.on("shape", object()))
    }

    /// The rate that interface `index` is shaped to by a token bucket, in bytes a second.
    ///
    /// # Errors
    /// None that can be foreseen.
    pub fn token_bucket_rate(&mut self, index: u32) -> Result<Option<u64>> {
        let ask = || {
            Message::new(
                libc::RTM_GETQDISC,
                libc::NLM_F_DUMP,
                &header(index, 0, 0, 0),
            )
        };
        let found = self.dump(ask, |payload| rate(payload, index));
        let found =
            found.map_err(|refusal| refusal.on("list shaping", format!("of interface {index}")))?;
        Ok(found.first().copied())
    }

    /// Sends all that interface `index` receives out by interface `target`.
    ///
    /// # Errors
    /// ENOENT in a kernel without ingress queueing, u32 or mirred.
    pub fn redirect_received(&mut self, index: u32, target: u32) -> Result<()> {
        let failed = |refusal: super::error::Refusal| {
            refusal.on("redirect", format!("interface {index} to {target}"))
        };
        let flags = libc::NLM_F_ACK | libc::NLM_F_CREATE;
        let mut ingress = Message::new(
            libc::RTM_NEWQDISC,
            flags,
            &header(index, INGRESS_HANDLE, TC_H_INGRESS, 0),
        );
        ingress.string(libc::TCA_KIND, "ingress");
        self.execute(ingress).map_err(failed)?;

        let priority_and_protocol = 1 << 16 | u32::from(ETH_P_ALL.to_be());
        let fixed = header(index, 0, INGRESS_HANDLE, priority_and_protocol);
        let mut filter = Message::new(libc::RTM_NEWTFILTER, flags, &fixed);
        filter.string(libc::TCA_KIND, "u32");
        filter.nested(libc::TCA_OPTIONS, |options| {
            options.bytes(TCA_U32_SEL, &match_everything());
            options.nested(TCA_U32_ACT, |actions| {
                actions.nested(1, |action| {
                    action.string(TCA_ACT_KIND, "mirred");
                    action.nested(TCA_ACT_OPTIONS, |mirred| {
                        mirred.bytes(TCA_MIRRED_PARMS, &redirection(target))
                    });
                });
            });
        });
        self.execute(filter).map_err(failed)
    }

    /// Ends what [`Netlink::redirect_received`] began. Nothing to end is no error.
    ///
    /// # Errors
    /// None that can be foreseen.
    pub fn stop_redirecting(&mut self, index: u32) -> Result<()> {
        let fixed = header(index, INGRESS_HANDLE, TC_H_INGRESS, 0);
        match self.execute(Message::new(libc::RTM_DELQDISC, libc::NLM_F_ACK, &fixed)) {
            Err(refusal) if ![libc::ENOENT, libc::EINVAL].contains(&refusal.errno) => {
                Err(refusal.on("stop redirecting", format!("interface {index}")))
            }
            _ => Ok(()),
        }
    }
}

/// `struct tcmsg`
fn header(index: u32, handle: u32, parent: u32, info: u32) -> [u8; 20] {
    let mut bytes = [0; 20];
    for (at, value) in [(4, index), (8, handle), (12, parent), (16, info)] {
        bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
    bytes
}

/// `struct tc_tbf_qopt`: the rate, no peak rate, the limit. What is in the 64-bit attributes stands for more.
fn parameters(bucket: &TokenBucket) -> Vec<u8> {
    let rate = u32::try_from(bucket.rate).unwrap_or(u32::MAX);
    let mut bytes = vec![0, TC_LINKLAYER_ETHERNET, 0, 0, 0, 0, 0, 0];
    bytes.extend(rate.to_ne_bytes());
    bytes.extend([0; 12]);
    bytes.extend(bucket.limit.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes
}

/// `struct tc_u32_sel` with one key whose mask is zero.
fn match_everything() -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[0] = TC_U32_TERMINAL;
    bytes[2] = 1;
    bytes
}

/// `struct tc_mirred`
fn redirection(target: u32) -> Vec<u8> {
    [0, 0, TC_ACT_STOLEN, 0, 0, TCA_EGRESS_REDIR, target]
        .iter()
        .flat_map(|field: &u32| field.to_ne_bytes())
        .collect()
}

fn rate(payload: &[u8], index: u32) -> Option<u64> {
    if u32_at(payload, 4)? != index {
        return None;
    }
    let find = |wanted: u16| {
        attributes(payload.get(20..)?)
            .find(|(kind, _)| *kind == wanted)
            .map(|(_, value)| value)
    };
    if text(find(libc::TCA_KIND)?) != "tbf" {
        return None;
    }
    let options = find(libc::TCA_OPTIONS)?;
    let option = |wanted: u16| {
        attributes(options)
            .find(|(kind, _)| *kind == wanted)
            .map(|(_, value)| value)
    };
    match option(TCA_TBF_RATE64) {
        Some(value) => u64_at(value, 0),
        None => u32_at(option(TCA_TBF_PARMS)?, 8).map(u64::from),
    }
}

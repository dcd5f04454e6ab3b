//! Routing policy: which table a packet's route is looked up in.

use std::fmt;

use ipnet::IpNet;

use super::Result;
use super::conversation::Netlink;
use super::message::{Message, attributes, family, ip, u32_at};

/// A rule by source address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceRule {
    /// Packets from here.
    pub source: IpNet,
    /// The routing table that they go by.
    pub table: u32,
    /// Lower is asked first; the kernel chooses one before `main`'s if absent.
    pub priority: Option<u32>,
}

/// `linux/fib_rules.h`
const FRA_SRC: u16 = 2;
const FRA_PRIORITY: u16 = 6;
const FRA_TABLE: u16 = 15;
const FR_ACT_TO_TBL: u8 = 1;

impl fmt::Display for SourceRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "from {} to table {}", self.source, self.table)
    }
}

impl Netlink {
    /// Adds a rule.
    ///
    /// # Errors
    /// EEXIST if there is one just like it.
    pub fn add_source_rule(&mut self, rule: &SourceRule) -> Result<()> {
        let flags = libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        self.execute(request(libc::RTM_NEWRULE, flags, rule))
            .map_err(|refusal| refusal.on("add rule", rule.to_string()))
    }

    /// Deletes a rule. Does nothing if it is not there.
    ///
    /// # Errors
    /// EPERM.
    pub fn delete_source_rule(&mut self, rule: &SourceRule) -> Result<()> {
        match self.execute(request(libc::RTM_DELRULE, libc::NLM_F_ACK, rule)) {
            Err(refusal) if refusal.errno != libc::ENOENT => {
                Err(refusal.on("delete rule", rule.to_string()))
            }
            _ => Ok(()),
        }
    }

    /// The rules by source address, of both families.
    ///
    /// # Errors
    /// EOPNOTSUPP in a kernel without policy routing.
    pub fn source_rules(&mut self) -> Result<Vec<SourceRule>> {
        let mut all = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let ask = || {
                let mut header = [0; 12];
                header[0] = family as u8;
                Message::new(libc::RTM_GETRULE, libc::NLM_F_DUMP, &header)
            };
            all.extend(
                self.dump(ask, read)
                    .map_err(|refusal| refusal.on("list", "rules"))?,
            );
        }
        Ok(all)
    }
}

/// `struct fib_rule_hdr`, then attributes.
fn request(kind: u16, flags: i32, rule: &SourceRule) -> Message {
    let mut header = [0; 12];
    header[0] = family(rule.source.addr());
    header[2] = rule.source.prefix_len();
    header[4] = u8::try_from(rule.table).unwrap_or(libc::RT_TABLE_UNSPEC);
    header[7] = FR_ACT_TO_TBL;
    let mut message = Message::new(kind, flags, &header);
    message.ip(FRA_SRC, rule.source.network());
    message.u32(FRA_TABLE, rule.table);
    if let Some(priority) = rule.priority {
        message.u32(FRA_PRIORITY, priority);
    }
    message
}

fn read(payload: &[u8]) -> Option<SourceRule> {
    let prefix = *payload.get(2)?;
    let mut source = None;
    let mut table = u32::from(*payload.get(4)?);
    let mut priority = None;
    for (kind, value) in attributes(payload.get(12..)?) {
        match kind {
            FRA_SRC => source = ip(value),
            FRA_TABLE => table = u32_at(value, 0)?,
            FRA_PRIORITY => priority = u32_at(value, 0),
            _ => {}
        }
    }
    let source = IpNet::new(source?, prefix).ok()?;
    Some(SourceRule {
        source,
        table,
        priority,
    })
}

//! What a cgroup uses, read from files held open.

use super::{Cgroup, Layout, flat_value, open_for_read, read_at_start};
use crate::error::Result;
use std::os::fd::OwnedFd;
use std::path::Path;

/// What a cgroup and its descendants use; the fields of CRI's container and pod statistics. A value that the host
/// doesn't count is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Processor time since the cgroup's creation.
    pub cpu_usage_ns: Option<u64>,
    /// All memory that is charged to it, caches included.
    pub memory_usage_bytes: Option<u64>,
    /// Usage without the inactive file cache: what can't easily be taken back.
    pub memory_working_set_bytes: Option<u64>,
    /// Anonymous memory.
    pub memory_rss_bytes: Option<u64>,
    /// The limit, absent where there is none.
    pub memory_limit_bytes: Option<u64>,
    /// Minor and major page faults together.
    pub page_faults: Option<u64>,
    /// Page faults that needed I/O.
    pub major_page_faults: Option<u64>,
    /// Swap.
    pub swap_usage_bytes: Option<u64>,
    /// The number of tasks.
    pub pids: Option<u64>,
    /// Kills by the OOM killer.
    pub oom_kills: Option<u64>,
}

/// A cgroup's statistics files, open: a reading is a few `pread`s and no path lookup.
#[derive(Debug)]
pub struct StatsReader {
    layout: Layout,
    cpu: Option<OwnedFd>,
    memory_usage: Option<OwnedFd>,
    memory_stat: Option<OwnedFd>,
    memory_limit: Option<OwnedFd>,
    memory_events: Option<OwnedFd>,
    swap: Option<OwnedFd>,
    pids: Option<OwnedFd>,
}

impl StatsReader {
    /// Opens a cgroup's statistics. A controller or a file that the host lacks is left out.
    pub fn open(cgroup: &Cgroup) -> Self {
        let layout = cgroup.hierarchies().layout();
        let open = |controller: &str, v2: &str, v1: &str| {
            let file = if layout == Layout::Unified { v2 } else { v1 };
            let dir = cgroup.controller_dir(controller)?;
            open_for_read(&Path::new(&dir).join(file)).ok()
        };
        StatsReader {
            layout,
            cpu: open("cpuacct", "cpu.stat", "cpuacct.usage"),
            memory_usage: open("memory", "memory.current", "memory.usage_in_bytes"),
            memory_stat: open("memory", "memory.stat", "memory.stat"),
            memory_limit: open("memory", "memory.max", "memory.limit_in_bytes"),
            memory_events: open("memory", "memory.events", "memory.oom_control"),
            swap: open(
                "memory",
                "memory.swap.current",
                "memory.memsw.usage_in_bytes",
            ),
            pids: open("pids", "pids.current", "pids.current"),
        }
    }

    /// Reads them.
    ///
    /// # Errors
    /// ENODEV if the cgroup was removed.
    pub fn read(&self) -> Result<Stats> {
        let text = |fd: &Option<OwnedFd>| fd.as_ref().map(read_at_start).transpose();
        let number = |fd: &Option<OwnedFd>| -> Result<Option<u64>> {
            Ok(text(fd)?.and_then(|text| text.trim().parse::<u64>().ok()))
        };
        let unified = self.layout == Layout::Unified;
        let cpu_usage_ns = if unified {
            text(&self.cpu)?
                .and_then(|text| flat_value(&text, "usage_usec"))
                .map(|us| us * 1000)
        } else {
            number(&self.cpu)?
        };
        let usage = number(&self.memory_usage)?;
        let stat = text(&self.memory_stat)?.unwrap_or_default();
        let key =
            |v2: &'static str, v1: &'static str| flat_value(&stat, if unified { v2 } else { v1 });
        let inactive_file = key("inactive_file", "total_inactive_file").unwrap_or(0);
        let swap = number(&self.swap)?;
        Ok(Stats {
            cpu_usage_ns,
            memory_usage_bytes: usage,
            memory_working_set_bytes: usage.map(|usage| usage.saturating_sub(inactive_file)),
            memory_rss_bytes: key("anon", "total_rss"),
            // v1 shows "no limit" as the largest page-aligned number.
            memory_limit_bytes: number(&self.memory_limit)?
                .filter(|limit| *limit < i64::MAX as u64 - 0xffff),
            page_faults: key("pgfault", "total_pgfault"),
            major_page_faults: key("pgmajfault", "total_pgmajfault"),
            // v1 counts memory and swap together.
            swap_usage_bytes: if unified {
                swap
            } else {
                swap.zip(usage)
                    .map(|(both, memory)| both.saturating_sub(memory))
            },
            pids: number(&self.pids)?,
            oom_kills: text(&self.memory_events)?.and_then(|text| flat_value(&text, "oom_kill")),
        })
    }
}

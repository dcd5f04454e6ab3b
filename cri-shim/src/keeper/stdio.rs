//! A container's standard streams: FIFOs with names, so that a keeper's successor finds them, or a terminal.
//!
//! The container's output ends are opened for reading and writing: it never gets SIGPIPE, whoever of us dies, and one
//! that prints more than the FIFO holds just waits. Its input is opened for reading only, so that it can see the end.

use super::poll::{duplicate, set_nonblocking};
use super::protocol::IoSpec;
use oci_runtime::Stdio;
use rustix::fs::{AtFlags, Mode, OFlags};
use std::os::fd::{BorrowedFd, OwnedFd};

/// What the keeper holds of a container's streams.
#[derive(Debug)]
pub(crate) enum Streams {
    /// It has none (a pod's init).
    None,
    Fifos {
        /// For writing; gone once input has ended.
        stdin: Option<OwnedFd>,
        stdout: OwnedFd,
        stderr: OwnedFd,
    },
    /// Its master.
    Terminal(OwnedFd),
    /// A terminal whose master nobody held when its keeper died.
    LostTerminal,
}

const STDIN: &str = "stdin";
const STDOUT: &str = "stdout";
const STDERR: &str = "stderr";

impl Streams {
    /// Makes the FIFOs of a new container in its directory `dir`, and opens both ends.
    ///
    /// A standard input that never ends (not `stdin_once`) is open for writing in the container too: the end of the
    /// keeper and the scribe must not look like its end. One that is to end can't be.
    ///
    /// # Errors
    /// `mkfifoat`'s or `openat`'s.
    pub(crate) fn create_fifos(
        dir: BorrowedFd<'_>,
        stdin: bool,
        stdin_once: bool,
    ) -> linux::Result<(Stdio, Streams)> {
        for name in [STDOUT, STDERR] {
            make_fifo(dir, name)?;
        }
        let (inner_stdin, stdin) = if stdin {
            make_fifo(dir, STDIN)?;
            let outer = open(dir, STDIN, OFlags::RDWR | OFlags::NONBLOCK)?;
            let inner = if stdin_once {
                OFlags::RDONLY
            } else {
                OFlags::RDWR
            };
            (open(dir, STDIN, inner)?, Some(outer))
        } else {
            (null()?, None)
        };
        let inner = Stdio::Fds {
            stdin: inner_stdin,
            stdout: open(dir, STDOUT, OFlags::RDWR)?,
            stderr: open(dir, STDERR, OFlags::RDWR)?,
        };
        Ok((inner, Streams::open_outputs(dir, stdin)?))
    }

    /// Opens the FIFOs of a container that another keeper started.
    ///
    /// # Errors
    /// `openat`'s.
    pub(crate) fn reopen_fifos(dir: BorrowedFd<'_>, stdin: bool) -> linux::Result<Streams> {
        let stdin = if stdin {
            Some(open(dir, STDIN, OFlags::RDWR | OFlags::NONBLOCK)?)
        } else {
            None
        };
        Streams::open_outputs(dir, stdin)
    }

    fn open_outputs(dir: BorrowedFd<'_>, stdin: Option<OwnedFd>) -> linux::Result<Streams> {
        Ok(Streams::Fifos {
            stdin,
            stdout: open(dir, STDOUT, OFlags::RDONLY | OFlags::NONBLOCK)?,
            stderr: open(dir, STDERR, OFlags::RDONLY | OFlags::NONBLOCK)?,
        })
    }

    /// Takes a terminal's master.
    ///
    /// # Errors
    /// `fcntl`'s.
    pub(crate) fn terminal(master: OwnedFd) -> linux::Result<Streams> {
        set_nonblocking(&master)?;
        Ok(Streams::Terminal(master))
    }

    /// The terminal's master.
    pub(crate) fn master(&self) -> Option<&OwnedFd> {
        match self {
            Streams::Terminal(master) => Some(master),
            _ => None,
        }
    }

    /// Duplicates for the scribe: stdout, stderr and perhaps stdin, or the master; `None` without streams.
    ///
    /// # Errors
    /// EMFILE.
    pub(crate) fn duplicates(&self) -> linux::Result<Option<Vec<OwnedFd>>> {
        Ok(match self {
            Streams::None | Streams::LostTerminal => None,
            Streams::Fifos {
                stdin,
                stdout,
                stderr,
            } => {
                let mut fds = vec![duplicate(stdout)?, duplicate(stderr)?];
                if let Some(stdin) = stdin {
                    fds.push(duplicate(stdin)?);
                }
                Some(fds)
            }
            Streams::Terminal(master) => Some(vec![duplicate(master)?]),
        })
    }

    /// Lets go of the input, so that the container sees its end once the scribe has let go too.
    pub(crate) fn close_stdin(&mut self) {
        if let Streams::Fifos { stdin, .. } = self {
            *stdin = None;
        }
    }
}

/// Whether `io` has FIFOs (a terminal has none).
pub(crate) fn has_fifos(io: &IoSpec) -> bool {
    !io.terminal
}

/// Removes the FIFOs' names, and the scribe's spools.
pub(crate) fn remove_fifos(dir: BorrowedFd<'_>) {
    for name in [STDIN, STDOUT, STDERR, "stdout.spool", "stderr.spool"] {
        // A container has some of them.
        let _ = rustix::fs::unlinkat(dir, name, AtFlags::empty());
    }
}

fn make_fifo(dir: BorrowedFd<'_>, name: &'static str) -> linux::Result<()> {
    rustix::fs::mkfifoat(dir, name, Mode::from_raw_mode(0o600))
        .map_err(|errno| linux::Error::new("mkfifoat", name, errno.raw_os_error()))
}

fn open(dir: BorrowedFd<'_>, name: &'static str, flags: OFlags) -> linux::Result<OwnedFd> {
    rustix::fs::openat(
        dir,
        name,
        flags | OFlags::CLOEXEC | OFlags::NOFOLLOW,
        Mode::empty(),
    )
    .map_err(|errno| linux::Error::new("open FIFO", name, errno.raw_os_error()))
}

fn null() -> linux::Result<OwnedFd> {
    rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| linux::Error::new("open", "/dev/null", errno.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;

    fn fifos(stdin: bool) -> (tempfile::TempDir, OwnedFd, Stdio, Streams) {
        let dir = tempfile::tempdir().unwrap();
        let fd: OwnedFd = std::fs::File::open(dir.path()).unwrap().into();
        let (inner, outer) = Streams::create_fifos(fd.as_fd(), stdin, true).unwrap();
        (dir, fd, inner, outer)
    }

    #[test]
    fn a_container_may_print_while_nobody_reads_and_a_successor_finds_all_of_it() {
        let (_dir, fd, inner, outer) = fifos(false);
        drop(outer);
        let Stdio::Fds { stdout, .. } = inner else {
            panic!("no descriptors")
        };
        let mut stdout = std::fs::File::from(stdout);
        stdout.write_all(b"printed while no keeper lived").unwrap();
        let Streams::Fifos { stdout: reader, .. } =
            Streams::reopen_fifos(fd.as_fd(), false).unwrap()
        else {
            panic!("no FIFOs")
        };
        drop(stdout);
        let mut text = String::new();
        std::fs::File::from(reader)
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "printed while no keeper lived");
    }

    #[test]
    fn a_container_sees_the_end_of_its_input() {
        let (_dir, _fd, inner, mut outer) = fifos(true);
        let Stdio::Fds { stdin, .. } = inner else {
            panic!("no descriptors")
        };
        if let Streams::Fifos {
            stdin: Some(writer),
            ..
        } = &outer
        {
            rustix::io::write(writer, b"last words").unwrap();
        }
        outer.close_stdin();
        let mut text = String::new();
        std::fs::File::from(stdin)
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "last words");
    }
}

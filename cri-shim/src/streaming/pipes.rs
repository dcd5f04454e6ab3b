//! Reading and writing pipes and terminals in tokio.

use crate::keeper::poll::{kernel, set_nonblocking};
use crate::watch::watch;
use bytes::Bytes;
use rustix::io::Errno;
use std::io;
use std::os::fd::OwnedFd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Read at once, in bytes.
const CHUNK: usize = 32 * 1024;

/// A pipe for a command's stream: our end, which doesn't block, and the command's, which does.
///
/// # Errors
/// EMFILE.
pub(super) fn pipe_from_command() -> linux::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = pipe()?;
    set_nonblocking(&reader)?;
    Ok((reader, writer))
}

/// The same for its input: the command's end, and ours.
///
/// # Errors
/// EMFILE.
pub(super) fn pipe_to_command() -> linux::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = pipe()?;
    set_nonblocking(&writer)?;
    Ok((reader, writer))
}

fn pipe() -> linux::Result<(OwnedFd, OwnedFd)> {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|errno| kernel("pipe2", errno))
}

/// `/dev/null`, for a stream that nobody wants.
///
/// # Errors
/// The `open`'s.
pub(super) fn null() -> linux::Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags};
    rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| linux::Error::new("open", "/dev/null", errno.raw_os_error()))
}

/// Something to read output from: a pipe or a terminal's master.
#[derive(Debug)]
pub(super) struct Reader {
    fd: AsyncFd<OwnedFd>,
}

impl Reader {
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        Ok(Reader { fd: watch(fd)? })
    }

    /// The next bytes; `None` at the end, which for a terminal is that nobody has its other side open.
    pub(super) async fn read(&self) -> io::Result<Option<Bytes>> {
        self.fd.async_io(Interest::READABLE, read_once).await
    }

    /// What can be read now; `None` if that is nothing.
    pub(super) fn read_now(&self) -> Option<Bytes> {
        read_once(self.fd.get_ref()).ok().flatten()
    }
}

fn read_once(fd: &OwnedFd) -> io::Result<Option<Bytes>> {
    let mut buffer = vec![0; CHUNK];
    match rustix::io::retry_on_intr(|| rustix::io::read(fd, &mut buffer)) {
        Ok(0) | Err(Errno::IO) => Ok(None),
        Ok(count) => {
            buffer.truncate(count);
            Ok(Some(buffer.into()))
        }
        Err(errno) => Err(errno.into()),
    }
}

/// Something to write input to: a pipe or a terminal's master.
#[derive(Debug)]
pub(super) struct Writer {
    fd: AsyncFd<OwnedFd>,
}

impl Writer {
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        Ok(Writer { fd: watch(fd)? })
    }

    /// Writes all of `data`, waiting while the other side is behind.
    ///
    /// # Errors
    /// EPIPE, EIO: the other side is gone.
    pub(super) async fn write(&self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let count = self
                .fd
                .async_io(Interest::WRITABLE, |fd| {
                    Ok(rustix::io::retry_on_intr(|| rustix::io::write(fd, data))?)
                })
                .await?;
            data = &data[count..];
        }
        Ok(())
    }
}

//! Ending a process with all that it started.

use std::io;
use std::process::Child;

#[cfg(unix)]
pub(super) use unix::Groups;

#[cfg(not(unix))]
pub(super) use elsewhere::Groups;

#[cfg(unix)]
mod unix {
    use super::{Child, io};
    use std::io::{BufRead, BufReader, Error, ErrorKind, Write};
    use std::os::unix::process::CommandExt;
    use std::process::{ChildStdin, ChildStdout, Command, Stdio};
    use std::sync::Mutex;

    /// Reads the numbers of groups and kills them, with the shell's own `kill`. It runs from before the first process to be killed,
    /// since one that starts processes without end may leave no room for another.
    const KILLER: &str = "while read -r group; do kill -s KILL -- \"-$group\" 2>/dev/null; echo; done";

    /// Puts processes into groups, and kills those.
    pub(in super::super) struct Groups {
        killer: Mutex<Killer>,
    }

    impl Groups {
        pub(in super::super) fn new() -> io::Result<Self> {
            Ok(Self { killer: Mutex::new(Killer::start()?) })
        }

        /// Makes the process lead a group of its own.
        pub(in super::super) fn prepare(&self, command: &mut Command) {
            command.process_group(0);
        }

        /// Kills what is left of the group of a process, and the process if it left the group. To be called once for a process, no
        /// later than it is seen to have ended: its number comes round again only after all others.
        pub(in super::super) fn kill(&self, child: &mut Child) -> io::Result<()> {
            let mut killer = self.killer.lock().map_err(|_| Error::other("another thread panicked"))?;
            if killer.kill(child.id()).is_err() {
                // A process may have been after every shell that it found.
                *killer = Killer::start()?;
                killer.kill(child.id())?;
            }
            child.kill()
        }
    }

    /// The shell that kills.
    struct Killer {
        shell: Child,
        input: ChildStdin,
        output: BufReader<ChildStdout>,
    }

    impl Killer {
        fn start() -> io::Result<Self> {
            let mut command = Command::new("sh");
            command.args(["-c", KILLER]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
            let mut shell = command.process_group(0).spawn()?;
            match (shell.stdin.take(), shell.stdout.take()) {
                (Some(input), Some(output)) => Ok(Self { shell, input, output: BufReader::new(output) }),
                _ => Err(Error::from(ErrorKind::BrokenPipe)),
            }
        }

        fn kill(&mut self, group: u32) -> io::Result<()> {
            writeln!(self.input, "{group}")?;
            // Its answer says that it is done.
            match self.output.read_line(&mut String::new())? {
                0 => Err(Error::from(ErrorKind::BrokenPipe)),
                _ => Ok(()),
            }
        }
    }

    impl Drop for Killer {
        fn drop(&mut self) {
            // It has nothing to do any more, and nobody is there to be told of a failure.
            let _ = self.shell.kill();
            let _ = self.shell.wait();
        }
    }
}

#[cfg(not(unix))]
mod elsewhere {
    use super::{Child, io};
    use std::process::Command;

    /// There are no groups: only the process itself is killed.
    pub(in super::super) struct Groups;

    impl Groups {
        pub(in super::super) fn new() -> io::Result<Self> {
            Ok(Self)
        }

        pub(in super::super) fn prepare(&self, _command: &mut Command) {}

        pub(in super::super) fn kill(&self, child: &mut Child) -> io::Result<()> {
            child.kill()
        }
    }
}

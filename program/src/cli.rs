//! What the command lines of all programs have in common.

use std::ffi::OsString;
use std::io::{self, Write};

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, ValueEnum};
use clap_complete::Shell;

/// How messages are written to stderr, and results of commands that honor it to stdout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people: lines, with progress bars on a terminal; results as text.
    Text,
    /// One JSON object per line, with the time, and no bars; results as one JSON object.
    Json,
}

/// Parses a command line that begins with the program's name. An option that may be given once is refused if it is given twice, because
/// it is unclear which value is meant. clap checks this itself, except for a global option before and after the command's name:
/// `--log-format`.
///
/// # Errors
/// clap's errors, which also carry the text of `--help` and `--version`.
pub fn parse<C: Parser>(args: impl IntoIterator<Item = OsString>) -> Result<C, clap::Error> {
    let args: Vec<OsString> = args.into_iter().collect();
    let is_format = |arg: &&OsString| {
        let arg = arg.as_encoded_bytes();
        arg == b"--log-format" || arg.starts_with(b"--log-format=")
    };
    let given = args.iter().filter(is_format).count();
    // It would be repeated in messages.
    if args.iter().any(|arg| arg.to_str().is_some_and(has_secret)) {
        let problem = "an argument is a URL with a user, a password or a query (`user:password@`, `?...`); give the bare URL, and credentials in the environment";
        return Err(C::command().error(ErrorKind::InvalidValue, problem));
    }
    let cli = C::try_parse_from(args)?;
    if given > 1 {
        return Err(C::command().error(
            ErrorKind::ArgumentConflict,
            "the argument '--log-format <LOG_FORMAT>' cannot be used multiple times",
        ));
    }
    Ok(cli)
}

/// Whether a text holds a URL with credentials or a query, in which signatures are.
fn has_secret(arg: &str) -> bool {
    let Some((scheme, rest)) = arg.split_once("://") else {
        return false;
    };
    let is_scheme =
        scheme.rsplit(['=', ',']).next().is_some_and(|scheme| ["s3", "gs", "az", "http", "https"].contains(&scheme));
    is_scheme
        && (rest.split('/').next().is_some_and(|host| host.contains('@')) || rest.contains('?') && rest.contains('='))
}

/// Writes a script that completes the commands and options of `C` in `shell`.
///
/// # Errors
/// If `out` cannot be written to.
pub fn completions<C: CommandFactory>(shell: Shell, out: &mut dyn Write) -> io::Result<()> {
    let mut command = C::command();
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut script);
    out.write_all(&script)
}

#[cfg(test)]
mod tests {
    /// A glob may have a question mark; a query has a value.
    #[test]
    fn urls_with_secrets_are_told_from_bare_ones() {
        for secret in ["http://user:pw@host/a", "data.images=https://tok@host/a.tar", "s3://b/k?X-Amz-Signature=S"] {
            assert!(super::has_secret(secret), "{secret}");
        }
        for bare in ["s3://b/train-{0..9}.tar", "s3://b/part-?.tar", "photos/a@b?c=d", "http://host:80/a@b"] {
            assert!(!super::has_secret(bare), "{bare}");
        }
    }

    use super::*;

    #[derive(Debug, Parser)]
    #[command(name = "demo")]
    struct Cli {
        #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
        log_format: LogFormat,
        #[command(subcommand)]
        command: Command,
    }

    #[derive(Debug, clap::Subcommand)]
    enum Command {
        Run {
            #[arg(long)]
            steps: Option<u64>,
        },
    }

    fn parse_line(line: &str) -> Result<Cli, String> {
        parse(line.split(' ').map(Into::into)).map_err(|e| e.to_string())
    }

    #[test]
    fn an_option_given_twice_is_refused_wherever_it_stands() {
        let cli = parse_line("demo run --steps 3 --log-format json").unwrap();
        assert_eq!(cli.log_format, LogFormat::Json);
        let Command::Run { steps } = cli.command;
        assert_eq!(steps, Some(3));
        for line in ["demo run --steps 3 --steps 3", "demo --log-format text run --log-format=json"] {
            let refused = parse_line(line).unwrap_err();
            assert!(refused.contains("cannot be used multiple times"), "{line}: {refused}");
        }
    }

    #[test]
    fn completions_know_the_options() {
        let mut script = Vec::new();
        completions::<Cli>(Shell::Bash, &mut script).unwrap();
        assert!(String::from_utf8(script).unwrap().contains("--steps"));
    }
}

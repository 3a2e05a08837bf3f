//! What a store answers, as errors of the operating system's kinds: callers treat a bucket as they treat a disk.
//!
//! Messages never show the URL of a request, which may be signed, nor anything of the settings.

use std::error::Error as StdError;
use std::io;

use object_store::Error;
use object_store::client::{HttpError, HttpErrorKind};

/// What a server answered, as far as an error tells: `object_store` says it in text alone, in these words.
struct Answer {
    status: u16,
    body: String,
}

impl Answer {
    fn of(error: &Error) -> Option<Answer> {
        chain(error).find_map(|cause| {
            let text = cause.to_string();
            let Some(rest) = text.strip_prefix("Server returned non-2xx status code: ") else {
                // Success in the status, and an error in the body.
                let body = text.strip_prefix("Server returned error response: ")?;
                return Some(Answer { status: 500, body: body.to_owned() });
            };
            Some(Answer { status: rest.get(..3)?.parse().ok()?, body: rest.to_owned() })
        })
    }

    /// `the server answered 503 (SlowDown)`.
    fn text(&self) -> String {
        let code = code_of(&self.body).map(|code| format!(" ({code})")).unwrap_or_default();
        format!("the server answered {}{code}", self.status)
    }
}

/// Whether the same request may succeed later.
pub(crate) fn may_pass(error: &Error) -> bool {
    match Answer::of(error) {
        Some(answer) => matches!(answer.status, 408 | 409 | 429 | 500 | 502..=599),
        // No answer, or one that broke off. 501 says that the store cannot do it at all.
        None => find::<HttpError>(error).is_some(),
    }
}

/// An error of a store as one of the operating system.
pub(crate) fn explain(error: Error) -> io::Error {
    use io::ErrorKind::{AlreadyExists, InvalidInput, NotFound, Other, PermissionDenied, TimedOut, Unsupported};
    let answer = Answer::of(&error);
    let said = answer.as_ref().map(Answer::text);
    let (kind, text) = match &error {
        Error::NotFound { .. } => match answer.as_ref().and_then(|answer| code_of(&answer.body)) {
            Some("NoSuchBucket") => (NotFound, "there is no such bucket".to_owned()),
            _ => (NotFound, "there is no such object".to_owned()),
        },
        Error::AlreadyExists { .. } | Error::Precondition { .. } => {
            (AlreadyExists, said.unwrap_or_else(|| "it is there already".to_owned()))
        }
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => (
            PermissionDenied,
            format!("{}: the credentials do not allow this, or there are none", said.unwrap_or_else(|| "refused".to_owned())),
        ),
        Error::NotSupported { .. } | Error::NotImplemented { .. } => (Unsupported, deepest(&error)),
        _ if asks_for_credentials(&error) => (
            PermissionDenied,
            "no credentials found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, or AWS_SKIP_SIGNATURE=true for a \
             public bucket"
                .to_owned(),
        ),
        _ if may_pass(&error) => {
            (TimedOut, format!("{}, and so it was after several pauses", said.unwrap_or_else(|| of_network(&error))))
        }
        _ => match said {
            Some(said) => (Other, said),
            None => (InvalidInput, deepest(&error)),
        },
    };
    io::Error::new(kind, text)
}

/// `Some("SlowDown")` for the body `<Error><Code>SlowDown</Code>...`.
fn code_of(body: &str) -> Option<&str> {
    let code = body.split_once("<Code>")?.1.split_once("</Code>")?.0;
    (code.len() < 60 && code.bytes().all(|b| b.is_ascii_alphanumeric())).then_some(code)
}

/// Whether the instance metadata service was asked, which is what is left where no credentials are given.
fn asks_for_credentials(error: &Error) -> bool {
    chain(error).any(|cause| cause.to_string().contains("169.254.169.254"))
}

fn of_network(error: &Error) -> String {
    match find::<HttpError>(error).map(HttpError::kind) {
        Some(HttpErrorKind::Timeout) => "the server did not answer in time".to_owned(),
        Some(HttpErrorKind::Connect) => format!("the server cannot be reached ({})", deepest(error)),
        _ => format!("the connection broke off ({})", deepest(error)),
    }
}

/// The last cause: it names no URL.
fn deepest(error: &Error) -> String {
    chain(error).last().map(ToString::to_string).unwrap_or_default()
}

fn find<T: StdError + 'static>(error: &Error) -> Option<&T> {
    chain(error).find_map(|cause| cause.downcast_ref())
}

fn chain(error: &Error) -> impl Iterator<Item = &(dyn StdError + 'static)> {
    let first: &(dyn StdError + 'static) = error;
    std::iter::successors(Some(first), |cause: &&(dyn StdError + 'static)| (*cause).source())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_read_from_answers() {
        assert_eq!(code_of("<?xml?><Error><Code>SlowDown</Code><Message>x</Message></Error>"), Some("SlowDown"));
        assert_eq!(code_of("<Code>not one</Code>"), None);
        assert_eq!(code_of("<Code>"), None);
    }

    #[test]
    fn a_url_with_a_signature_is_not_shown() {
        let secret = "error sending request for url (http://h/x?sig=SECRET)";
        let cause = io::Error::new(io::ErrorKind::ConnectionReset, "reset by peer");
        #[derive(Debug)]
        struct Outer(&'static str, io::Error);
        impl std::fmt::Display for Outer {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.0)
            }
        }
        impl StdError for Outer {
            fn source(&self) -> Option<&(dyn StdError + 'static)> {
                Some(&self.1)
            }
        }
        let http = HttpError::new(HttpErrorKind::Interrupted, Outer(secret, cause));
        let error = Error::Generic { store: "S3", source: Box::new(http) };
        assert!(may_pass(&error));
        let error = explain(error);
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(error.to_string().contains("reset by peer") && !error.to_string().contains("SECRET"), "{error}");
    }
}

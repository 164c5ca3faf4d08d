//! `smg explain`: why a request went where it went.

use http::Method;

use super::{
    Failure,
    client::{Client, Target},
    output,
};

/// Arguments of `smg explain`.
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// The request's id, from the `x-request-id` header of its answer.
    request_id: String,
    #[command(flatten)]
    target: Target,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let client = Client::new(&args.target)?;
    let answer = client.call(Method::GET, &["explain", &args.request_id], None)?;
    match args.target.output {
        output::Form::Json => output::print_json(&answer),
        output::Form::Table => output::print(&output::readable(&answer)),
    }
}

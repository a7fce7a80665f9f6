//! Prints the CustomResourceDefinition: `cargo run -p crds --example print | kubectl apply --server-side -f -`.

fn main() {
    print!("{}", crds::yaml());
}

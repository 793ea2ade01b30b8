//! needs stream
// What becomes of a product: it is added to the residual stream, and handed to the norm behind it: the sum times the
// norm's weight, and the sum of four squares. epilogue(m, n, v, count): columns n to n + count - 1; n is a multiple of 4.
@group(2) @binding(1) var<storage, read_write> out: array<f32>;         // [m, columns] the residual stream

fn epilogue(m: u32, n: u32, value: vec4<f32>, count: u32) {
    let at = m * params.out_stride + n;
    var v = value;
    for (var i = 0u; i < 4u; i++) {
        if (i < count) {
            v[i] += out[at + i];
            out[at + i] = v[i];
        } else {
            v[i] = 0.0;
        }
    }
    stream_store(m, n, v);
}

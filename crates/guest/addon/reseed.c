/* The add-on that gives fresh entropy to the OpenSSL inside a node process: no JavaScript interface reaches it.
   Freestanding: everything it calls is in the process already, and `-z now` makes loading fail where it is not. */
typedef void *handle;
typedef handle (*callback)(handle env, handle info);
extern int napi_get_cb_info(handle, handle, unsigned long *, handle *, handle *, void **);
extern int napi_get_typedarray_info(handle, handle, int *, unsigned long *, void **, handle *, unsigned long *);
extern int napi_create_function(handle, const char *, unsigned long, callback, void *, handle *);
extern int napi_set_named_property(handle, handle, const char *, handle);
extern int napi_throw_error(handle, const char *, const char *);
extern void RAND_add(const void *, int, double);

static handle reseed(handle env, handle info) {
    handle argument = 0;
    unsigned long count = 1, length = 0;
    void *bytes = 0;
    if (napi_get_cb_info(env, info, &count, &argument, 0, 0) != 0 || count < 1 ||
        napi_get_typedarray_info(env, argument, 0, &length, &bytes, 0, 0) != 0 || length < 32 || length > 4096) {
        napi_throw_error(env, 0, "reseed: 32 to 4096 bytes are wanted");
        return 0;
    }
    RAND_add(bytes, (int)length, (double)length);
    return 0;
}

__attribute__((visibility("default"))) handle napi_register_module_v1(handle env, handle exports) {
    handle function = 0;
    if (napi_create_function(env, "reseed", 6, reseed, 0, &function) != 0 ||
        napi_set_named_property(env, exports, "reseed", function) != 0)
        napi_throw_error(env, 0, "reseed: cannot be registered");
    return exports;
}
